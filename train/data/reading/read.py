"""Files to examples, one at a time: texts, JSON, tables and Parquet, plain or gzipped.

A file may be anything that a stranger uploads. Whatever is wrong with it ends in one InvalidInput that names the
file and the line, what is wrong there, and what would be right; and memory stays bounded by :class:`Limits`. What
is none of the known kinds is refused, never read as prose.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, get_args

from everlearn.errors import InvalidInput, NotFound
from train.data.examples import Chat, RawExample, Text, parse_record
from train.data.labelled.example import LabelledKind
from train.data.labelled.forms import schema_of
from train.data.reading import json_values, tables, warc
from train.data.reading.forms import UnknownForm, strict_json
from train.data.reading.lines import CHUNK_BYTES, SEPARATOR, Limits, Reader, documents, lines, wrong
from train.data.reading.part import Part, PartReader
from train.data.reading.schema import UNLABELLED, Schema
from train.data.reading.unpacked import Unpacked
from train.data.reading.web_page import MAX_DEPTH, MAX_PAGE_BYTES, PAGE_CPU_S, PAGE_MEMORY_BYTES, main_text

__all__ = [
    "SEPARATOR", "SUFFIXES", "Chat", "Kind", "Limits", "RawExample", "Text", "parse_record", "read_examples",
]  # fmt: skip

Kind = Literal["auto", "text", "chat"] | LabelledKind
KINDS = ("auto", "text", "chat", *get_args(LabelledKind))
Layout = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "html", "warc"]

SUFFIXES: dict[str, Layout] = {
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
}

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

PLAIN = {"text": "plain text", "html": "a web page", "warc": "a crawl"}
"""What has no labels."""
UNREADABLE = {
    "too_large": f"the page is larger than {MAX_PAGE_BYTES} bytes",
    "too_deep": f"the page has elements more than {MAX_DEPTH} deep in each other",
    "too_slow": f"the page takes more than {PAGE_CPU_S:.0f} s to parse",
    "too_hungry": f"the page takes more than {PAGE_MEMORY_BYTES >> 30} GiB of memory to parse",
}

WANTED: dict[Layout, str] = {
    "jsonl": "JSON lines",
    "json": "JSON",
    "csv": "CSV",
    "tsv": "TSV",
    "text": "text in UTF-8",
    "html": "a web page",
    "warc": "a WARC file",
}
RIGHT: dict[Layout, str] = {
    "jsonl": json_values.RIGHT_LINE,
    "json": json_values.RIGHT,
    "csv": tables.RIGHT_TABLE,
    "tsv": tables.RIGHT_TABLE,
    "text": "plain text in UTF-8",
    "html": "HTML",
    "warc": warc.RIGHT,
}


def read_examples(
    path: Path,
    *,
    kind: Kind = "auto",
    limits: Limits | None = None,
    name: str | None = None,
    translation: str | None = None,
    part: Part | None = None,
) -> Iterator[RawExample]:
    """The file's examples in order, read as they are taken. ``name`` stands for the file's own in messages, and
    its suffix says what the file holds (uploads are kept under an id). ``translation``: see ``DataOptions``. ``part``: of
    JSON lines or a text, what alone is read of it (``train.data.collecting.shards``).

    Raises NotFound without a file, and InvalidInput as above, also when the file ends before ``min_examples``;
    UnknownForm before the first example where that is in no form that is known.
    """
    limits = limits or Limits()
    name = name or path.name
    count = 0
    schema = schema_of(kind, translation, path.parent) if kind in get_args(LabelledKind) else UNLABELLED
    for example in _examples(path, name, limits, schema, part):
        if kind == "chat" and isinstance(example, Text):
            raise wrong(
                f"{example.source}: is a text, not a conversation", 'Right would be {"messages": […]}'
            )
        if kind == "text" and isinstance(example, Chat):
            raise wrong(f"{example.source}: is a conversation, not a text", 'Right would be {"text": …}')
        count += 1
        yield example
    if count < limits.min_examples:
        if not count:
            raise wrong(f"{name}: is empty", "It must hold at least one example")
        raise wrong(f"{name}: holds {count} examples", f"At least {limits.min_examples} are needed")


def _examples(
    path: Path, name: str, limits: Limits, schema: Schema, part: Part | None = None
) -> Iterator[RawExample]:
    with _opened(path, name) as (stream, layout):
        unpacked = Unpacked(path, limits.max_unpacked_bytes)
        if layout == "parquet":
            from train.data.reading.parquet import read_parquet

            yield from read_parquet(path, name, limits.max_row_bytes, unpacked, schema)
            return
        first = part.line if part else 1
        reader = Reader(PartReader(stream, part) if part else stream, name, limits, unpacked)
        if layout == "text" and first == 1:
            _refuse_records(reader, schema)
        if schema is not UNLABELLED and layout in PLAIN:
            raise UnknownForm(f"{name}: is {PLAIN[layout]}. {schema.right}", param="training_file")
        if layout == "html":
            yield _page(reader)
        elif layout == "warc":
            yield from warc.read_warc(reader)
        elif layout == "text":
            yield from documents(lines(reader, RIGHT[layout], first=first), name, limits)
        elif layout in ("csv", "tsv"):
            for number, record, ignored in tables.rows(reader, layout, schema):
                yield schema.parse(record, f"{name}:{number}", ignored)
        elif (part is None and _is_list(reader)) or (layout == "json" and not _is_lines(reader)):
            yield from _json(reader, layout, name, json_values.records(reader, schema), schema)
        else:
            yield from _json(reader, layout, name, _json_lines(reader, name, first), schema)


def _page(reader: Reader) -> Text:
    """A file that is one page. Raises InvalidInput where nothing can be made of it."""
    parts: list[bytes] = []
    while sum(map(len, parts)) <= MAX_PAGE_BYTES and (part := reader.chunk(1)):
        parts.append(part)
    page = b"".join(parts)
    text, reason = main_text(page)
    if reason in UNREADABLE:
        raise wrong(f"{reader.name}:1: {UNREADABLE[reason]}", "Leave it out, or save its text as .txt")
    return Text(text, f"{reader.name}:1", "web page", left_out=reason)


def _json_lines(reader: Reader, name: str, first: int) -> Iterator[tuple[int, Any]]:
    too_long = "Split it into several examples"
    for number, line in lines(reader, RIGHT["jsonl"], too_long=too_long, first=first):
        if line.strip():
            yield number, json_values.parse(line, f"{name}:{number}")


def _json(
    reader: Reader, layout: Layout, name: str, records: Iterator[tuple[int, Any]], schema: Schema
) -> Iterator[RawExample]:
    """Raises UnknownForm where a .json file's first record is no JSON and names nothing that a form begins with:
    settings with comments are such."""
    is_known = layout != "json" or schema.names_a_start.search(reader.head()) is not None
    try:
        for number, record in records:
            yield schema.parse(record, f"{name}:{number}", ())
            is_known = True
    except InvalidInput as error:
        raise error if is_known else UnknownForm(error.message, param=error.param) from None


def _is_list(reader: Reader) -> bool:
    head = reader.head()
    return head.startswith(b"[") and head[1:].lstrip().startswith((b"{", b"]"))


def _is_lines(reader: Reader) -> bool:
    """Whether the first line is a value by itself, or at least no object that goes on in the next."""
    first, _, rest = reader.head().partition(b"\n")
    try:
        strict_json(first.decode())
    except (ValueError, RecursionError):
        return not first.startswith(b"{") or (not rest and len(first) < len(reader.head()))
    return bool(rest.strip())


def _refuse_records(reader: Reader, schema: Schema) -> None:
    """Raises InvalidInput for a text that is records of JSON by another name: their braces would be learnt.

    Prose may show a record, also first, and goes on as prose.
    """
    head = reader.head()
    text = head.decode(errors="ignore")
    begin = re.match(r"\[?\s*(?=\{)", text)
    if not begin:
        return
    is_list = text.startswith("[")
    try:
        record, end = json.JSONDecoder().raw_decode(text, begin.end())
    except (ValueError, RecursionError):
        is_longer = len(head) >= CHUNK_BYTES
        is_record = is_longer and schema.starting.match(text) is not None
    else:
        after = text[end:].lstrip()
        if is_list:
            after = after.removeprefix("]").lstrip()
        goes_on = not after or after.startswith("," if is_list else ("{", ","))
        is_record = goes_on and any(_starts(value, schema) for value in (record, *record.values()))
    if is_record:
        raise wrong(
            f"{reader.name}:1: holds {'a list of JSON' if is_list else 'JSON lines'}, not prose",
            "Name the file .jsonl",
        )


def _starts(value: object, schema: Schema) -> bool:
    """Whether it begins a form, or is a list of records that do."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and not {*schema.starts}.isdisjoint(value[0])
    return isinstance(value, dict) and not {*schema.starts}.isdisjoint(value)


@contextmanager
def _opened(path: Path, name: str) -> Generator[tuple[IO[bytes] | gzip.GzipFile, Layout]]:
    """The file's bytes, decompressed, and how to read them."""
    try:
        raw = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"there is no file {path}", param="training_file") from None
    with raw:
        inner = Path(name)
        zipped = inner.suffix.lower() == ".gz"
        if zipped or (inner.suffix.lower() not in SUFFIXES and _head(raw).startswith(b"\x1f\x8b")):
            inner = inner.with_suffix("") if zipped else inner
            with gzip.open(raw) as stream:
                layout = _layout(inner, _gzip_head(stream, name), name)
                if layout == "parquet":
                    raise wrong(f"{name}: is Parquet inside gzip", "Leave it plain: it is compressed already")
                yield stream, layout
        else:
            yield raw, _layout(inner, _head(raw), name)


def layout_named(name: str) -> Layout | None:
    """How a file of this name is read; None where its first bytes decide."""
    return SUFFIXES.get(Path(name.lower().removesuffix(".gz")).suffix)


def _head(stream: IO[bytes]) -> bytes:
    head = stream.read(8)
    stream.seek(0)
    return head


def _gzip_head(stream: gzip.GzipFile, name: str) -> bytes:
    try:
        return stream.peek(8)[:8]
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(f"{name}: is not whole gzip: {error}", "Compress it again") from None


def _layout(name: Path, head: bytes, shown: str) -> Layout:
    """By its suffix; without one, by its first bytes."""
    layout = SUFFIXES.get(name.suffix.lower())
    is_parquet = head.startswith(b"PAR1")
    if layout is None:
        layout = _unnamed(name, head, shown, is_parquet)
    if layout == "parquet":
        if not is_parquet:
            raise wrong(
                f"{shown}: does not begin as Parquet does", "Write it again, or name it .jsonl or .txt"
            )
        return layout
    for magic, what in DISGUISES.items():
        if head.startswith(magic):
            raise wrong(f"{shown}:1: is {what}, not {WANTED[layout]}", f"Right would be {RIGHT[layout]}")
    return layout


def _unnamed(name: Path, head: bytes, shown: str, is_parquet: bool) -> Layout:
    known = ", ".join(SUFFIXES)
    if name.suffix:
        raise wrong(
            f'{shown}: files that end in "{name.suffix[:20]}" are not read',
            f"Right would be {known}; a text as it stands may be named .txt",
        )
    if is_parquet:
        return "parquet"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if begin in (b"{", b"["):
        return "json"
    for magic, what in DISGUISES.items():
        if head.startswith(magic):
            raise wrong(f"{shown}:1: is {what}", f"Right would be a file that ends in {known}")
    if not head.strip():
        return "text"
    raise wrong(f"{shown}: does not say what it holds", f"Name it by what it is: {known}")
