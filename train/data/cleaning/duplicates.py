"""Find duplicates among the collected documents of all files: equal ones by hash, near ones by MinHash."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn.progress import Progress
from train.data.cleaning.learned_parts import Learnt
from train.data.cleaning.near_duplicates import (
    CONTEXT_PERMUTATIONS,
    PERMUTATIONS,
    Templates,
    comparable,
    minhash,
    near_duplicates,
    same_question,
)
from train.data.collecting.collect import Collection

TELL_EVERY = 5000


def find_duplicates(
    collected: Sequence[Collection],
    given_held: NDArray[np.bool_],
    threshold: float | None,
    work: Path,
    progress: Progress,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which documents are equal to, or nearly, another that is kept; each bool (documents,).

    Of equal ones the first is kept, of similar ones that with the smallest hash, whatever the order of files;
    but those of files given to measure with go before all.
    """
    hashes = np.concatenate([each.hashes for each in collected])  # uint8 (documents, 32)
    exact = _equal(hashes, given_held)
    if threshold is None or exact.all():
        return exact, np.zeros_like(exact)
    documents = _Documents(collected)
    left = np.flatnonzero(~exact)
    compared, signatures, contexts = _signatures(documents, left, work, progress)
    first = hashes[compared, :8].copy().view(">u8")[:, 0]
    order = np.lexsort((first, ~given_held[compared]))

    def same_context(one: int, other: int) -> bool:
        a, b = documents.learnt(compared[one]), documents.learnt(compared[other])
        if np.array_equal(a.context[:1], b.context[:1]):
            return True
        # What another question has another answer to is a fact of its own, however alike the answers are.
        return np.array_equal(a.shingles, b.shingles) and same_question(a.context[1:], b.context[1:])

    found = near_duplicates(signatures, order, threshold, contexts=contexts, same_context=same_context)
    near = np.zeros_like(exact)
    near[compared[found]] = True
    return exact, near & ~given_held


def _equal(hashes: NDArray[np.uint8], given_held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which documents have the hash of an earlier one, or of one to measure with; bool (documents,). Sorted, since a set
    takes three times the memory."""
    high, low = hashes[:, :8].copy().view(np.uint64)[:, 0], hashes[:, 8:16].copy().view(np.uint64)[:, 0]
    order = np.lexsort((~given_held, low, high))
    exact = np.zeros(len(hashes), dtype=np.bool_)
    exact[order[1:]] = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    return exact


class _Documents:
    """Those of all files, by one number."""

    def __init__(self, collected: Sequence[Collection]) -> None:
        self._collected = collected
        self._starts = np.cumsum([0, *map(len, collected)]).tolist()
        self.shingles = sum(each.shingles for each in collected)

    def learnt(self, document: int) -> Learnt:
        file = bisect_right(self._starts, document) - 1
        return self._collected[file].learnt(document - self._starts[file])


def _signatures(
    documents: _Documents, left: NDArray[np.int64], work: Path, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Those of ``left`` that can be compared, int64 (n,), with the signatures of what they teach and of its
    context, uint32 (n, …), on disk: three quarters of a kilobyte each."""
    templates = Templates(documents.shingles)
    compared: list[int] = []
    for document in left.tolist():
        made = documents.learnt(document).shingles
        if comparable(made):
            templates.add(made)
            compared.append(document)
    with (work / "signatures.bin").open("wb") as signatures, (work / "contexts.bin").open("wb") as contexts:
        for number, document in enumerate(compared):
            if number % TELL_EVERY == 0:
                progress(f"looking for duplicates: {number} of {len(compared)}", 0.6)
            each = documents.learnt(document)
            signatures.write(minhash(templates.own(each.shingles)).tobytes())
            contexts.write(minhash(each.context[1:], CONTEXT_PERMUTATIONS).tobytes())
    return (
        np.array(compared, dtype=np.int64),
        _table(work / "signatures.bin", PERMUTATIONS),
        _table(work / "contexts.bin", CONTEXT_PERMUTATIONS),
    )


def _table(file: Path, columns: int) -> NDArray[np.uint32]:
    if not file.stat().st_size:
        return np.zeros((0, columns), dtype=np.uint32)
    return np.memmap(file, dtype=np.uint32, mode="r").reshape(-1, columns)
