"""Examples that are nearly the same, found by MinHash (Lee et al., 2021, arXiv 2107.06499).

What is compared is what is learnt: a text, or a conversation's answers. A signature estimates the Jaccard
similarity of two by the share of equal numbers, and only those that agree in one whole band are compared. What many
documents have in common, such as a template, is left out where one says more than that. Of two conversations
only those are the same that are asked the same and answered alike, or asked the same but for a few words and answered
with the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from train.data.cleaning.words import shingles
from train.data.splitmix import splitmix64

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
CONTEXT_PERMUTATIONS = 64
BANDS = 16
"""16 bands of 8: of two texts with similarity 0.8, 95% meet in a band; with 0.5, 6%."""

MIN_SHINGLES = 8
"""Below, a text is too short for a similarity to mean anything: only equal ones are duplicates."""
MANY = 5
"""What so many documents have is a template."""
MAX_OTHER_WORDS = 3
MAX_OTHER_PART = 3
"""So many words may differ in two questions that are the same, and at most a third of them."""

MAX_BUCKET = 64
MAX_LOOKS = 16
"""How many are kept to compare with in a bucket, and how many pairs of questions are compared for one example:
so a million examples with one answer take a million steps and not their square."""

COUNTS_LOG2 = 27
"""At most 2^27 counters of a byte each, for shingles."""


def signature(text: str) -> NDArray[np.uint32] | None:
    """uint32 (PERMUTATIONS,); None for a text that is too short."""
    return minhash(shingles(text)) if comparable(shingles(text)) else None


def minhash(hashes: NDArray[np.uint32], permutations: int = PERMUTATIONS) -> NDArray[np.uint32]:
    """uint32 (permutations,)."""
    made = _empty(permutations).copy()
    made.update_batch(np.unique(hashes).tolist())
    return np.asarray(made.hashvalues, dtype=np.uint32)


def comparable(made: NDArray[np.uint32]) -> bool:
    """Whether there are enough of them to be like another text's."""
    return len(made) >= MIN_SHINGLES and len(np.unique(made)) >= MIN_SHINGLES


class Templates:
    """Counts in how many documents each shingle is, to tell what is a document's own."""

    def __init__(self, total: int) -> None:
        """``total``: about how many shingles there are; four counters each keep mistakes rare."""
        size = min(COUNTS_LOG2, max(16, (4 * total).bit_length()))
        self._shift = np.uint32(32 - size)
        self._counts = np.zeros(2**size, dtype=np.uint8)

    def add(self, made: NDArray[np.uint32]) -> None:
        """One document's."""
        places = np.unique(made >> self._shift)
        self._counts[places] += self._counts[places] < 255

    def own(self, made: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The passages that fewer than MANY documents have; all, where a few changed words are no passage."""
        rare = self._counts[made >> self._shift] < MANY
        edges = np.flatnonzero(np.diff(np.concatenate([[False], rare, [False]]).astype(np.int8)))
        passages = [made[a:b] for a, b in edges.reshape(-1, 2).tolist() if b - a >= MIN_SHINGLES]
        found = np.concatenate(passages) if passages else made
        return found if comparable(found) else made


def same_question(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Whether a few words of either are missing in the other; each uint32 (words,), without doubles.

    Where none is, the words come in another order or number: who is larger than whom is another question.
    """
    common = len(np.intersect1d(one, other, assume_unique=True))
    longer = max(len(one), len(other))
    return 0 < longer - common <= min(MAX_OTHER_WORDS, longer // MAX_OTHER_PART)


def near_duplicates(
    signatures: NDArray[np.uint32],
    order: NDArray[np.int64],
    threshold: float,
    *,
    contexts: NDArray[np.uint32] | None = None,
    same_context: Callable[[int, int], bool] | None = None,
) -> NDArray[np.bool_]:
    """Which texts are too like an earlier one in ``order`` that is kept.

    signatures: uint32 (texts, PERMUTATIONS). order: int64, the texts that are compared, best first. contexts:
    uint32 (texts, CONTEXT_PERMUTATIONS), what they are learnt beside; ``same_context`` decides on two whose
    signatures are alike. Returns bool (texts,). The same texts give the same answer in whatever sequence they
    were read, if ``order`` does not depend on it.
    """
    duplicate = np.zeros(len(signatures), dtype=np.bool_)
    which, keys, met = _meeting(signatures, contexts)
    kept_in: dict[tuple[int, int], list[int]] = {}
    for text in order[met[order]].tolist():
        bands = list(enumerate(keys[np.searchsorted(which, text)].tolist()))
        candidates = np.array(sorted({other for key in bands for other in kept_in.get(key, ())}), np.int64)
        if len(candidates):
            similarity = (signatures[candidates] == signatures[text]).mean(axis=1)
            alike = candidates[similarity >= threshold].tolist()
            same = same_context or (lambda _one, _other: True)
            duplicate[text] = any(same(text, other) for other in alike[:MAX_LOOKS])
        if not duplicate[text]:
            for key in bands:
                bucket = kept_in.setdefault(key, [])
                if len(bucket) < MAX_BUCKET:
                    bucket.append(text)
    return duplicate


@cache
def _empty(permutations: int) -> MinHash:
    from datasketch import MinHash  # it brings scipy: seconds on a busy machine

    return MinHash(permutations, seed=1, hashfunc=index, scheme="affine32")


def _meeting(
    signatures: NDArray[np.uint32], contexts: NDArray[np.uint32] | None
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
    """The texts that share a band with another, int64 (n,); each band of theirs as one number, uint64 (n, BANDS); and
    which texts these are, bool (texts,). One band of all texts is in memory at a time."""
    met = np.zeros(len(signatures), dtype=np.bool_)
    for band in range(BANDS):
        key = np.sort(_band(signatures, contexts, band, slice(None)))
        twice = key[1:][key[1:] == key[:-1]]
        met |= np.isin(_band(signatures, contexts, band, slice(None)), twice)
    which = np.flatnonzero(met)
    keys = np.stack([_band(signatures, contexts, band, which) for band in range(BANDS)], axis=1)
    return which, keys, met


def _band(
    signatures: NDArray[np.uint32],
    contexts: NDArray[np.uint32] | None,
    band: int,
    which: slice | NDArray[np.int64],
) -> NDArray[np.uint64]:
    """The band of each of ``which`` as one number, uint64 (n,)."""
    key: NDArray[np.uint64] | np.uint64 = np.uint64(0)
    for table in (signatures, contexts):
        width = table.shape[1] // BANDS if table is not None else 0
        for column in range(band * width, (band + 1) * width):
            key = splitmix64(key ^ table[which, column].astype(np.uint64))  # type: ignore[index]
    return np.asarray(key)
