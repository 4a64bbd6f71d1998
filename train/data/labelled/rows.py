"""Examples to batches, one in each row, so that any batch is a pure function of its number.

A row is as long as the longest of its batch, not as ``sequence_tokens``: examples of like lengths stand together. What
is padding is said by each example's length (``document_ids`` is -1 there), never by an id that padding shares with
the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.mixing.mixed_rows import MixedRows, Mixture
from train.data.packing import IGNORED, PADDING
from train.data.splitmix import shuffled, splitmix64
from train.data.store import TokenStore

POOL_STEPS = 32
"""Among the examples of so many steps, those of like lengths are put into one step."""


class LabelledBatch(TypedDict):
    """Each int64 (rows, longest). ``labels`` and ``segments`` as in the store; ``document_ids``: the example's number,
    and -1 in the padding."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    document_ids: NDArray[np.int64]


class LabelledRows:
    """A store of labelled data as ``fit`` takes batches. ``rows``: the examples; ``tokens`` of all of them.

    ``step_rows``: of one optimizer step over all ranks; they have like lengths. ``seed`` None keeps the store's order.
    ``padding_id`` fills rows up: nothing may attend to it. With a ``mixture``, a step has its share of each component, and
    only the examples of one step stand together by length.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        step_rows: int = 1,
        seed: int | None = 0,
        padding_id: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        if store.labels is None or store.segments is None:
            raise InvalidInput("the store holds no labelled data", param="data.store")
        if not len(store):
            raise InvalidInput("there is nothing to train on: the data holds no examples")
        self.store, self.labels, self.segments = store, store.labels, store.segments
        self.step_rows, self.seed, self.padding_id = step_rows, seed, padding_id
        self.lengths = np.diff(store.offsets)  # int64 (rows,)
        self.rows, self.tokens = len(store), int(self.lengths.sum())
        self.mixed = MixedRows(mixture, mixture.sizes, self.lengths, seed or 0) if mixture else None
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> LabelledBatch:
        """Examples ``(step * ranks + rank) * micro_batch`` and following of the endless sequence of epochs."""
        if not 0 <= rank < ranks or step < 0 or micro_batch < 1:
            raise ValueError(f"no batch at step {step} for rank {rank} of {ranks}, micro batch {micro_batch}")
        first = (step * ranks + rank) * micro_batch
        return self.rows_of([self._example(number) for number in range(first, first + micro_batch)])

    def rows_of(self, numbers: Sequence[int]) -> LabelledBatch:
        """The examples with these numbers."""
        shape = (len(numbers), int(self.lengths[list(numbers)].max()))
        batch = LabelledBatch(
            input_ids=np.full(shape, self.padding_id, dtype=np.int64),
            labels=np.full(shape, IGNORED, dtype=np.int64),
            segments=np.zeros(shape, dtype=np.int64),
            document_ids=np.full(shape, PADDING, dtype=np.int64),
        )
        for line, number in enumerate(numbers):
            span = slice(int(self.store.offsets[number]), int(self.store.offsets[number + 1]))
            length = span.stop - span.start
            batch["input_ids"][line, :length] = self.store.tokens[span]
            batch["labels"][line, :length] = self.labels[span]
            batch["segments"][line, :length] = self.segments[span]
            batch["document_ids"][line, :length] = number
        return batch

    def _example(self, number: int) -> int:
        if self.mixed:
            return self._mixed_example(self.mixed, number)
        epoch, position = divmod(number, self.rows)
        if self.seed is None:
            return position
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._ordered(self.seed, epoch))
        return int(self._order[1][position])

    def _mixed_example(self, mixed: MixedRows, number: int) -> int:
        step, position = divmod(number, self.step_rows)
        if self._order is None or self._order[0] != step:
            first = step * self.step_rows
            rows = np.array([mixed.row(each) for each in range(first, first + self.step_rows)])
            self._order = (step, rows[np.argsort(self.lengths[rows], kind="stable")])
        return int(self._order[1][position])

    def _ordered(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Shuffled; then within each pool of steps by length, and the steps shuffled again. int64 (rows,)."""
        order = shuffled(self.rows, seed, epoch)
        pool = POOL_STEPS * self.step_rows
        within = np.lexsort((np.arange(self.rows), self.lengths[order], np.arange(self.rows) // pool))
        order = order[within]
        whole = self.rows // self.step_rows  # steps; what is left over stays last
        drawn = splitmix64(np.array([seed % 2**63 + 2**63], dtype=np.uint64))[0]
        steps = shuffled(whole, int(drawn), epoch)
        first = order[: whole * self.step_rows].reshape(whole, self.step_rows)[steps].reshape(-1)
        return np.concatenate([first, order[whole * self.step_rows :]])
