"""Files to examples, one at a time: text, JSON lines and Parquet, plain or gzipped.

A file may be anything that a stranger uploads. Whatever is wrong with it ends in one InvalidInput that names the
file and the line, what is wrong there, and what would be right; and memory stays bounded by :class:`Limits`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from everlearn.errors import InvalidInput, NotFound
from train.data.examples import Chat, RawExample, Text, parse_record
from train.data.unpacked import Unpacked

__all__ = ["SUFFIXES", "Chat", "Kind", "Limits", "RawExample", "Text", "parse_record", "read_examples"]

Kind = Literal["auto", "text", "chat"]
Layout = Literal["text", "jsonl", "parquet"]

SUFFIXES: dict[str, Layout] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
SEPARATOR = "<|endoftext|>"
"""A line that holds nothing else ends a document of a text file."""

DISGUISES = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x1f\x8b": "gzipped",
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"%PDF": "a PDF document",
    b"SQLite": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True)
class Limits:
    """What a file may hold. ``max_document_bytes``: a longer text document is cut at the next blank line.

    ``max_unpacked_bytes``: of the whole file; None leaves it at a multiple of its size, see ``train.data.unpacked``.
    """

    max_line_bytes: int = 2**20
    max_row_bytes: int = 2**24
    max_unpacked_bytes: int | None = None
    max_document_bytes: int = 2**13
    min_examples: int = 1


def read_examples(
    path: Path, *, kind: Kind = "auto", limits: Limits | None = None, name: str | None = None
) -> Iterator[RawExample]:
    """The file's examples in order, read as they are taken. ``name`` stands for the file's own in messages, and
    its suffix says what the file holds (uploads are kept under an id).

    Raises NotFound without a file, and InvalidInput as above, also when the file ends before ``min_examples``.
    """
    limits = limits or Limits()
    name = name or path.name
    count = 0
    with _opened(path, name) as (stream, layout):
        unpacked = Unpacked(path, limits.max_unpacked_bytes)
        if layout == "parquet":
            from train.data.parquet import read_parquet

            examples = read_parquet(path, name, limits.max_row_bytes, unpacked)
        elif layout == "jsonl":
            examples = _json_lines(_lines(stream, name, limits, "jsonl", unpacked), name)
        else:
            examples = _documents(_lines(stream, name, limits, "text", unpacked), name, limits)
        for example in examples:
            if kind == "chat" and isinstance(example, Text):
                raise _fault(
                    f"{example.source}: is a text, not a conversation", 'Right would be {"messages": […]}'
                )
            if kind == "text" and isinstance(example, Chat):
                raise _fault(f"{example.source}: is a conversation, not a text", 'Right would be {"text": …}')
            count += 1
            yield example
    if count == 0:
        raise _fault(f"{name}: is empty", "It must hold at least one example")
    if count < limits.min_examples:
        raise _fault(f"{name}: holds {count} examples", f"At least {limits.min_examples} are needed")


@contextmanager
def _opened(path: Path, name: str) -> Generator[tuple[IO[bytes], Layout]]:
    """The file's bytes, decompressed, and how to read them."""
    try:
        raw = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"there is no file {path}", param="training_file") from None
    with raw:
        inner = Path(name)
        if inner.suffix == ".gz" or (inner.suffix not in SUFFIXES and _head(raw).startswith(b"\x1f\x8b")):
            inner = inner.with_suffix("") if inner.suffix == ".gz" else inner
            with gzip.open(raw) as stream:
                layout = _layout(inner, _gzip_head(stream, name), name)
                if layout == "parquet":
                    raise _fault(
                        f"{name}: is Parquet inside gzip", "Leave it plain: it is compressed already"
                    )
                yield stream, layout  # type: ignore[misc]
        else:
            yield raw, _layout(inner, _head(raw), name)


def _head(stream: IO[bytes]) -> bytes:
    head = stream.read(8)
    stream.seek(0)
    return head


def _gzip_head(stream: gzip.GzipFile, name: str) -> bytes:
    try:
        return stream.peek(8)[:8]
    except (OSError, EOFError, zlib.error) as error:
        raise _fault(f"{name}: is not whole gzip: {error}", "Compress it again") from None


def _layout(name: Path, head: bytes, shown: str) -> Layout:
    """By its suffix, else by its first bytes."""
    layout = SUFFIXES.get(name.suffix.lower())
    is_parquet = head.startswith(b"PAR1")
    if layout is None:
        layout = "parquet" if is_parquet else "jsonl" if head.lstrip()[:1] == b"{" else "text"
    if layout == "parquet":
        if not is_parquet:
            raise _fault(
                f"{shown}: does not begin as Parquet does", "Write it again, or name it .jsonl or .txt"
            )
        return layout
    for magic, what in DISGUISES.items():
        if head.startswith(magic):
            raise _fault(f"{shown}:1: is {what}, not {_WANTED[layout]}", f"Right would be {_RIGHT[layout]}")
    return layout


_WANTED = {"jsonl": "JSON lines", "text": "text in UTF-8"}
_RIGHT = {
    "jsonl": 'one JSON object a line, in UTF-8, such as {"messages": […]}',
    "text": "plain text in UTF-8",
}


def _json_lines(lines: Iterator[tuple[int, str]], name: str) -> Iterator[RawExample]:
    for number, line in lines:
        source = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except RecursionError:
            raise _fault(
                f"{source}: is nested too deeply", "Right would be one flat JSON object a line"
            ) from None
        except ValueError as error:
            what = getattr(error, "msg", None) or str(error)
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise _fault(
                f"{source}: is not JSON: {what}{column}: {_glimpse(line)}",
                f"Right would be {_RIGHT['jsonl']}",
            ) from None
        yield parse_record(record, source)


def _documents(lines: Iterator[tuple[int, str]], name: str, limits: Limits) -> Iterator[RawExample]:
    """Documents end at a separator line; longer ones at a blank line, or where a paragraph is far too long."""
    block: list[str] = []
    size = first = 0
    for number, line in lines:
        blank, ends = not line.strip(), line.strip() == SEPARATOR
        full = size >= limits.max_document_bytes and (blank or size >= 8 * limits.max_document_bytes)
        if block and (ends or full):
            yield Text("\n".join(block).strip("\n"), f"{name}:{first}")
            block, size = [], 0
        if ends or (blank and not block):
            continue
        if not block:
            first = number
        block.append(line)
        size += len(line) + 1
    if block:
        yield Text("\n".join(block).strip("\n"), f"{name}:{first}")


def _lines(
    stream: IO[bytes], name: str, limits: Limits, layout: Layout, unpacked: Unpacked
) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; never more than ``max_line_bytes`` in memory."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(limits.max_line_bytes + 2)
        except (OSError, EOFError, zlib.error) as error:
            raise _fault(f"{name}:{number}: is not whole gzip: {error}", "Compress it again") from None
        if not line:
            return
        unpacked.add(len(line), f"{name}:{number}")
        if len(line.rstrip(b"\r\n")) > limits.max_line_bytes:
            right = "Split it into several examples" if layout == "jsonl" else "Break it into lines"
            raise _fault(f"{name}:{number}: the line is longer than {limits.max_line_bytes} bytes", right)
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8"
            raise _fault(f"{name}:{number}: {wrong}", "Save the file as UTF-8") from None
        if "\0" in text:
            raise _fault(
                f"{name}:{number}: has a zero byte, so it is not text", f"Right would be {_RIGHT[layout]}"
            )
        yield number, text


def _glimpse(line: str) -> str:
    return line if len(line) <= 60 else line[:57] + "…"


def _fault(wrong: str, right: str) -> InvalidInput:
    return InvalidInput(f"{wrong}. {right}", param="training_file")
