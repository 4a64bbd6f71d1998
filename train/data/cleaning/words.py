"""Words of a text in any script, as numbers: what finding near duplicates counts and compares."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from train.data.splitmix import splitmix64

SHINGLE_WORDS = 5

BETWEEN, LETTER, ALONE = 0, 1, 2
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Chinese characters
    (0xAC00, 0xD7AF),  # Korean
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
"""Scripts whose characters say about a word each, or that are written without spaces: first and last character."""

_PRIME = 0x100000001B3


@dataclass(frozen=True)
class Words:
    """Those of a text in their order. hashes: uint64 (words,), of lower case. starts, ends: int64 (words,), where they
    stand in the text in lower case. alone: bool (words,), which are one character of a script without spaces."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    alone: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hashes)


def words(text: str) -> NDArray[np.uint64]:
    """A hash of each word in turn, lower case; uint64 (words,)."""
    return find_words(text).hashes


def find_words(text: str) -> Words:
    """Every word of a text.

    A word is a run of letters, marks and digits, or one character of a script written without spaces. All in
    numpy: a word's hash is a difference of the text's running polynomial, shifted back to the text's beginning.
    """
    points = code_points(text.lower())
    kind = classes()[points]
    inside, alone = kind == LETTER, kind == ALONE
    before = np.concatenate([[False], inside[:-1]]) if len(points) else inside
    after = np.concatenate([inside[1:], [False]]) if len(points) else inside
    starts = np.flatnonzero((inside & ~before) | alone)
    ends = np.flatnonzero((inside & ~after) | alone) + 1
    powers, inverses = _powers(len(points) + 1)
    running = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum((points.astype(np.uint64) + 1) * powers[:-1])]
    )
    hashes = splitmix64((running[ends] - running[starts]) * inverses[starts])
    return Words(hashes, starts, ends, alone[starts])


def grams(hashes: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A hash of every ``count`` words in a row, as they come; uint64 (words - count + 1,), none for fewer words.

    As in :func:`find_words`, a difference of a running polynomial: as fast for many words as for two.
    """
    return Grams(hashes).at(np.arange(max(0, len(hashes) - count + 1)), count)


class Grams:
    """Hashes of words in a row, wherever they are asked for."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        powers, self._inverses = _powers(len(hashes) + 1)
        self._running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers[:-1])])

    def at(self, begins: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
        """Of ``count`` words from each of ``begins``."""
        return splitmix64((self._running[begins + count] - self._running[begins]) * self._inverses[begins])


def are_in(values: NDArray[np.uint64], ascending: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of ``values`` are in ``ascending``, bool (values,)."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[places] == values


def shingles(text: str, salt: int = 0) -> NDArray[np.uint32]:
    """Hashes of every five words in a row, as they come; uint32 (words - 4,), none for fewer words.

    Those of texts with another ``salt`` have nothing in common.
    """
    said = words(text)
    if len(said) < SHINGLE_WORDS:
        return np.zeros(0, dtype=np.uint32)
    made = np.full(len(said) - SHINGLE_WORDS + 1, salt, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        made = splitmix64(made ^ said[offset : offset + len(made)])
    return short(made)


def short(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (hashes >> np.uint64(32)).astype(np.uint32)


def code_points(text: str) -> NDArray[np.uint32]:
    """uint32 (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@cache
def classes() -> NDArray[np.uint8]:
    """Whether a character stands between words, in one, or is one; uint8 (code points,)."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for code in range(0x20000):  # above are rare Chinese characters and nothing else with letters
        if unicodedata.category(chr(code))[0] in "LMN":
            table[code] = LETTER
    for first, last in UNSPACED:
        part = table[first : last + 1]
        part[(part == LETTER) if first < 0x20000 else slice(None)] = ALONE
    return table


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number modulo 2^64, and of its inverse; each uint64 (count,)."""
    powers, inverses = _table_of_powers(max(12, (count - 1).bit_length()))
    return powers[:count], inverses[:count]


@lru_cache(maxsize=1)
def _table_of_powers(size_log2: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    powers = np.full(2**size_log2, _PRIME, dtype=np.uint64)
    inverses = np.full(2**size_log2, pow(_PRIME, -1, 2**64), dtype=np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)
