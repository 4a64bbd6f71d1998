"""Numbered lines of a file, and the documents of a text, with bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from everlearn.errors import InvalidInput
from train.data.examples import Text
from train.data.reading.unpacked import Unpacked

SEPARATOR = "<|endoftext|>"
"""A line that holds nothing else ends a document of a text file."""
BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """What a file may hold. ``max_document_bytes``: a longer text document is cut at the next blank line.

    ``max_unpacked_bytes``: of the whole file; None leaves it at a multiple of its size, see ``train.data.reading.unpacked``.
    """

    max_line_bytes: int = 2**20
    max_row_bytes: int = 2**24
    max_unpacked_bytes: int | None = None
    max_document_bytes: int = 2**13
    min_examples: int = 1


class Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


class Reader:
    """A file's bytes, with a look at what comes next, and its name for messages. Errors are InvalidInput.

    ``line_begin``: where the last line began, in bytes, of what is read line by line.
    """

    def __init__(
        self, stream: IO[bytes] | gzip.GzipFile | Readable, name: str, limits: Limits, unpacked: Unpacked
    ) -> None:
        self._stream: Readable = stream
        self._held = b""
        self.line_begin = self._line_end = 0
        self.name, self.limits, self._unpacked = name, limits, unpacked

    def head(self) -> bytes:
        """What the first line that is not blank begins with, after a byte order mark; at most CHUNK_BYTES."""
        while len(self._held) < CHUNK_BYTES and (more := self._take(CHUNK_BYTES - len(self._held), 0)):
            self._held += more
        return self._held.removeprefix(BOM).lstrip()

    def line(self, number: int) -> bytes:
        """Up to its end; at most ``max_line_bytes`` and what tells that there are more."""
        line = self._line(number)
        self.line_begin, self._line_end = self._line_end, self._line_end + len(line)
        return line

    def _line(self, number: int) -> bytes:
        most = self.limits.max_line_bytes + 2
        end = self._held.find(b"\n", 0, most) + 1
        if end or len(self._held) >= most:
            line, self._held = self._held[: end or most], self._held[end or most :]
            return line
        line, self._held = self._held, b""
        try:
            rest = self._stream.readline(most - len(line))
        except (OSError, EOFError, zlib.error) as error:
            raise self._broken(error, number) from None
        self._unpacked.add(len(rest), f"{self.name}:{number}")
        return line + rest

    def chunk(self, number: int) -> bytes:
        if self._held:
            held, self._held = self._held, b""
            return held
        return self._take(CHUNK_BYTES, number)

    def _take(self, size: int, number: int) -> bytes:
        try:
            taken = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._broken(error, number) from None
        self._unpacked.add(len(taken), f"{self.name}:{max(1, number)}")
        return taken

    def _broken(self, error: Exception, number: int) -> InvalidInput:
        where = f"{self.name}:{number}" if number else self.name
        return wrong(f"{where}: is not whole gzip: {error}", "Compress it again")


def lines(
    reader: Reader, right: str, *, too_long: str = "Break it into lines", first: int = 1
) -> Iterator[tuple[int, str]]:
    """Lines without their ends, numbered from ``first``. A byte order mark goes, at any line.

    Raises InvalidInput naming the line; ``right`` says what would be, where it is no text.
    """
    name, most = reader.name, reader.limits.max_line_bytes
    number = first - 1
    while True:
        number += 1
        line = reader.line(number)
        if not line:
            return
        if len(line.rstrip(b"\r\n")) > most:
            raise wrong(f"{name}:{number}: the line is longer than {most} bytes", too_long)
        yield number, decoded(line.removeprefix(BOM).rstrip(b"\r\n"), f"{name}:{number}", right)


def decoded(content: bytes, where: str, right: str) -> str:
    """Raises InvalidInput that begins with ``where``."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} of the line, 0x{content[error.start]:02x}, is not UTF-8"
        raise wrong(f"{where}: {at}", "Save the file as UTF-8") from None
    if "\0" in text:
        raise wrong(f"{where}: has a zero byte, so it is not text", f"Right would be {right}")
    return text


def documents(numbered: Iterator[tuple[int, str]], name: str, limits: Limits) -> Generator[Text]:
    """Documents end at a separator line; longer ones at a blank line, or where a paragraph is far too long."""
    block: list[str] = []
    size = first = 0
    for number, line in numbered:
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


def wrong(what: str, right: str) -> InvalidInput:
    return InvalidInput(f"{what}. {right}", param="training_file")
