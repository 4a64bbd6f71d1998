"""Texts that are nearly the same, found by MinHash (Lee et al., 2021, arXiv 2107.06499).

The signature of a text estimates its Jaccard similarity to any other: the share of equal numbers. Only texts that
agree in one whole band of their signatures are compared.
"""

from __future__ import annotations

from functools import cache
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from train.data.splitmix import splitmix64

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
BANDS = 16
"""16 bands of 8: of two texts with similarity 0.8, 95% meet in a band; with 0.5, 6%."""

SHINGLE_WORDS = 5
MIN_SHINGLES = 8
"""Below, a text is too short for a similarity to mean anything: only equal ones are duplicates."""

_PRIME = 0x100000001B3


def signature(text: str) -> NDArray[np.uint32] | None:
    """uint32 (PERMUTATIONS,); None for a text that is too short."""
    shingles = np.unique(_shingles(text))
    if len(shingles) < MIN_SHINGLES:
        return None
    minhash = _empty().copy()
    minhash.update_batch(shingles.tolist())
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def near_duplicates(
    signatures: NDArray[np.uint32], order: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """Which texts are too like an earlier one in ``order`` that is kept.

    signatures: uint32 (texts, PERMUTATIONS). order: int64, the texts that are compared, best first. Returns bool
    (texts,). The same texts give the same answer in whatever sequence they were read, if ``order`` does not
    depend on it.
    """
    duplicate = np.zeros(len(signatures), dtype=np.bool_)
    keys, met = _meeting(signatures)
    kept_in: dict[tuple[int, int], list[int]] = {}
    for text in order[met[order]].tolist():
        bands = list(enumerate(keys[text].tolist()))
        candidates = sorted({other for key in bands for other in kept_in.get(key, ())})
        if candidates:
            similarity = (signatures[candidates] == signatures[text]).mean(axis=1)
            duplicate[text] = similarity.max() >= threshold
        if not duplicate[text]:
            for key in bands:
                kept_in.setdefault(key, []).append(text)
    return duplicate


@cache
def _empty() -> MinHash:
    from datasketch import MinHash  # it brings scipy: seconds on a busy machine

    return MinHash(PERMUTATIONS, seed=1, hashfunc=index, scheme="affine32")


def _meeting(signatures: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Each band as one number, uint64 (texts, BANDS), and which texts share one with another, bool (texts,)."""
    keys = np.empty((len(signatures), BANDS), dtype=np.uint64)
    met = np.zeros(len(signatures), dtype=np.bool_)
    width = PERMUTATIONS // BANDS
    for band in range(BANDS):
        part = signatures[:, band * width : (band + 1) * width].astype(np.uint64)
        key = np.zeros(len(signatures), dtype=np.uint64)
        for column in part.T:
            key = splitmix64(key ^ column)
        keys[:, band] = key
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        met |= counts[inverse] > 1
    return keys, met


def _shingles(text: str) -> NDArray[np.uint32]:
    """Hashes of every five words in a row, lower case; uint32 (words - 4,).

    A word is a run of letters and digits, or one character of a script written without spaces. All in numpy:
    a word's hash is a difference of the text's running polynomial, shifted back to the text's beginning.
    """
    data = np.frombuffer(text.lower().encode(), dtype=np.uint8)
    if not len(data):
        return np.zeros(0, dtype=np.uint32)
    inside = _WORD_BYTES[data]
    alone = (data >= 0xE3) & (data <= 0xED)  # leads of U+3000 to U+DFFF: kana, Chinese, Korean
    before = np.concatenate([[False], inside[:-1]])
    starts = np.flatnonzero((inside & ~before) | alone)
    if len(starts) < SHINGLE_WORDS:
        return np.zeros(0, dtype=np.uint32)
    after = np.concatenate([inside[1:], [False]])
    ends = np.flatnonzero(inside & ~after)
    ends = np.minimum(ends[np.searchsorted(ends, starts)] + 1, np.append(starts[1:], len(data)))
    powers, inverses = _powers(len(data) + 1)
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data.astype(np.uint64) + 1) * powers[:-1])])
    words = splitmix64((running[ends] - running[starts]) * inverses[starts])
    shingles = np.zeros(len(words) - SHINGLE_WORDS + 1, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        shingles = splitmix64(shingles ^ words[offset : offset + len(shingles)])
    return (shingles >> np.uint64(32)).astype(np.uint32)


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number modulo 2^64, and of its inverse; each uint64 (count,)."""
    powers = np.full(count, _PRIME, dtype=np.uint64)
    inverses = np.full(count, pow(_PRIME, -1, 2**64), dtype=np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


_WORD_BYTES = np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])
