"""Packed rows with some words masked, to be said from the words on both sides (BERT, arXiv 1810.04805)."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from train.data.corruption.word_starts import Vocabulary
from train.data.packing import IGNORED, PADDING, Packer
from train.data.splitmix import uniform

SHARE = 0.15
"""Of a text's tokens are to be predicted, whole words at a time."""
MASKED, REPLACED = 0.8, 0.1
"""Of these are hidden, and replaced by any token; the others stay, so that the model must look at all."""
MAX_WORD = 16
"""Tokens. A longer run without a beginning, as of bytes, is cut into words of this length."""


class MaskedBatch(TypedDict):
    """Each int64 (rows, seq). ``labels``: the token that was there where it is to be predicted, else -100.

    The others as in ``train.data.packing.Batch``.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    document_ids: NDArray[np.int64]


class MaskedRows:
    """Numbered batches of the rows of ``packer``. What is masked is a pure function of (seed, number of the row).

    Numbers go on from epoch to epoch, so that each masks other words. Padding and special tokens are never masked.
    """

    def __init__(self, packer: Packer, vocabulary: Vocabulary, mask: int, seed: int) -> None:
        self.packer, self.vocabulary, self.mask, self.seed = packer, vocabulary, mask, seed
        self.ordinary = vocabulary.ordinary
        self.rows, self.mixed = packer.rows, packer.mixed

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> MaskedBatch:
        """As ``Packer.batch``."""
        batch = self.packer.batch(step, micro_batch, rank, ranks)
        first = (step * ranks + rank) * micro_batch
        labels = np.full_like(batch["input_ids"], IGNORED)
        for line in range(micro_batch):
            ids, documents = batch["input_ids"][line], batch["document_ids"][line]
            hidden = self._hidden(ids, documents, first + line)
            labels[line, hidden] = ids[hidden]
            batch["input_ids"][line] = self._replaced(ids, hidden, first + line)
        return MaskedBatch(
            input_ids=batch["input_ids"],
            labels=labels,
            position_ids=batch["position_ids"],
            document_ids=batch["document_ids"],
        )

    def _hidden(self, ids: NDArray[np.int64], documents: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
        """Which tokens are to be predicted, bool (seq,): of each document's words, in a drawn order, as many as fit."""
        drawn = uniform(len(ids), self.seed, number, 0)
        usable = (documents != PADDING) & ~self.vocabulary.special[ids]
        hidden = np.zeros(len(ids), dtype=np.bool_)
        borders = np.flatnonzero(np.diff(documents)) + 1
        for start, stop in zip([0, *borders], [*borders, len(ids)], strict=True):
            wanted = max(1, round(SHARE * int(usable[start:stop].sum())))
            words = word_spans(self.vocabulary.begins[ids[start:stop]], usable[start:stop])
            for word in sorted(words, key=lambda span: drawn[start + span[0]]):
                size = word[1] - word[0]
                if size <= wanted or not hidden[start:stop].any():
                    hidden[start + word[0] : start + word[1]] = True
                    wanted -= size
                if wanted <= 0:
                    break
        return hidden

    def _replaced(self, ids: NDArray[np.int64], hidden: NDArray[np.bool_], number: int) -> NDArray[np.int64]:
        """The row as the model sees it."""
        what, which = uniform(len(ids), self.seed, number, 1), uniform(len(ids), self.seed, number, 2)
        others = self.ordinary[(which * len(self.ordinary)).astype(np.int64)]
        seen = np.where(hidden & (what < MASKED), self.mask, ids)
        return np.where(hidden & (what >= MASKED) & (what < MASKED + REPLACED), others, seen)


def word_spans(begins: NDArray[np.bool_], usable: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First token and end of each word of a document, none longer than :data:`MAX_WORD`."""
    after = np.concatenate([[True], ~usable[:-1]])
    starts = np.flatnonzero(usable & (begins | after))
    ends = np.flatnonzero(usable & np.concatenate([(begins | ~usable)[1:], [True]])) + 1
    return [
        (at, min(at + MAX_WORD, int(end)))
        for start, end in zip(starts, ends, strict=True)
        for at in range(int(start), int(end), MAX_WORD)
    ]
