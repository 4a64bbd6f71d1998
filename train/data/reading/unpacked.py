"""Bound what a compressed file may unpack to: a few bytes can stand for any amount of text."""

from __future__ import annotations

from pathlib import Path

from everlearn.errors import InvalidInput

FREE_BYTES = 256 * 2**20
TIMES = 500
"""Text compresses to about a fifth; short conversations that share 20 KB of tools, to a 160th where those lie in a
dictionary."""


class Unpacked:
    """Counts what is read of ``path``: at most ``most_bytes`` (None: any number), and at most ``TIMES`` its size
    where that is more than ``FREE_BYTES``."""

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        natural = max(FREE_BYTES, TIMES * path.stat().st_size)
        self._most_bytes = natural if most_bytes is None else min(natural, most_bytes)
        self._bytes = 0

    def add(self, size_bytes: int, where: str) -> None:
        """Raises InvalidInput naming ``where``."""
        self._bytes += size_bytes
        if self._bytes > self._most_bytes:
            raise InvalidInput(
                f"{where}: the file unpacks to more than {self._most_bytes} bytes. "
                "Split it into several, or leave out what is repeated",
                param="training_file",
            )
