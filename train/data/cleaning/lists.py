"""Lists of words, phrases and hosts that the user gives: a line each, and comments after #.

Words are compared as ``train.data.cleaning.words`` reads them: whole, in lower case, whatever stands between two of a
phrase; of Chinese, characters in a row. So a list of any length costs a look-up for each word of a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.cleaning.words import Grams, Words, are_in, grams
from train.data.cleaning.words import words as words_of

MAX_BYTES = 64 * 1024**2
MAX_PHRASE_WORDS = 32
MAX_LINE_WORDS = 30
"""A longer line is prose that speaks of it."""
LINK = re.compile(r"(?:https?://|www\.)([A-Za-z0-9.-]{1,253})", re.IGNORECASE)


def read_list(paths: Sequence[Path], key: str) -> list[str]:
    """The entries of the files. Raises InvalidInput naming file and line where there are none, or a file is no text."""
    entries: list[str] = []
    for path in paths:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{path}: a list has at most {MAX_BYTES // 1024**2} MiB", param=key)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise InvalidInput(f"{path}:{line}: is not UTF-8. Save the file as UTF-8", param=key) from None
        found = [entry for line in lines if (entry := line.split("#", 1)[0].strip())]
        if not found:
            raise InvalidInput(f"{path}: has no entry. A list has a word or phrase per line", param=key)
        entries += found
    return entries


class Phrases:
    """Finds phrases among a text's words."""

    def __init__(self, phrases: Iterable[str]) -> None:
        by_length: dict[int, list[np.uint64]] = {}
        first: list[np.uint64] = []
        for phrase in phrases:
            said = words_of(phrase)[:MAX_PHRASE_WORDS]
            if len(said):
                first.append(said[0])
                by_length.setdefault(len(said), []).append(grams(said, len(said))[0])
        self._hashes = {length: np.unique(np.array(each)) for length, each in sorted(by_length.items())}
        self._first = np.unique(np.array(first, dtype=np.uint64))

    def found(self, said: Words) -> NDArray[np.bool_]:
        """Which words are part of a phrase, bool (words,)."""
        inside = np.zeros(len(said), dtype=np.bool_)
        begins = np.flatnonzero(are_in(said.hashes, self._first))
        made = Grams(said.hashes)
        for length, hashes in self._hashes.items() if len(begins) else ():
            begins = begins[begins + length <= len(said)]
            hits = begins[are_in(made.at(begins, length), hashes)]
            for offset in range(length):
                inside[hits + offset] = True
        return inside


def without_lines(text: str, said: Words, inside: NDArray[np.bool_]) -> str:
    """Without the lines, but for long ones, that hold one of the words ``inside``."""
    if not inside.any():
        return text
    low = text.lower()
    ends = np.flatnonzero(
        np.frombuffer(low.encode("utf-32-le", "surrogatepass"), dtype=np.uint32) == ord("\n")
    )
    line_of = np.searchsorted(ends, said.starts)
    counts = np.bincount(line_of, minlength=len(ends) + 1)
    hit = np.zeros(len(ends) + 1, dtype=np.bool_)
    hit[line_of[inside]] = True
    gone = hit & (counts <= MAX_LINE_WORDS)
    return "\n".join(
        line for line, is_gone in zip(text.split("\n"), gone.tolist(), strict=True) if not is_gone
    )


class Hosts:
    """Finds links to hosts of a list, or to hosts below them."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = frozenset(LINK.sub(r"\1", host).lower().strip("/.") for host in hosts)

    def without_lines(self, text: str) -> str:
        """Without the lines that link to one."""
        if "://" not in text and "www." not in text.lower():
            return text
        lines = text.split("\n")
        kept = [line for line in lines if not any(self.has(link[1]) for link in LINK.finditer(line))]
        return "\n".join(kept) if len(kept) < len(lines) else text

    def has(self, host: str) -> bool:
        """Whether the host, or one above it, is listed."""
        parts = host.lower().strip(".").split(".")
        return any(".".join(parts[at:]) in self._hosts for at in range(len(parts)))
