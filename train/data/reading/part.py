"""A part of a file, from one line's begin to another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Part:
    """Bytes ``begin`` to below ``end``; ``line``: the number of its first line."""

    begin: int
    end: int
    line: int


class PartReader:
    """The bytes of ``part`` alone."""

    def __init__(self, stream: IO[bytes], part: Part) -> None:
        stream.seek(part.begin)
        self._stream, self._left = stream, part.end - part.begin

    def read(self, size: int, /) -> bytes:
        return self._taken(self._stream.read(min(size, self._left)))

    def readline(self, size: int, /) -> bytes:
        return self._taken(self._stream.readline(min(size, self._left)))

    def _taken(self, taken: bytes) -> bytes:
        self._left -= len(taken)
        return taken
