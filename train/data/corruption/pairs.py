"""Rows of sources and targets for encoder-decoders: several pairs share a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.mixing.mixed_rows import MixedRows, Mixture
from train.data.packing import IGNORED, PADDING, pack_apart, pack_lengths
from train.data.splitmix import shuffled
from train.data.store import TokenStore

Pair = tuple[int, NDArray[np.int64], NDArray[np.int64]]
"""The pair's number, its source and its target."""


class PairBatch(TypedDict):
    """Each int64, the first two (rows, source), the others (rows, target).

    ``labels``: the targets, -100 in the padding. ``decoder_input_ids``: those that come before them. A pair has the same
    ``document_ids`` on both sides; they are -1 in the padding.
    """

    input_ids: NDArray[np.int64]
    document_ids: NDArray[np.int64]
    decoder_input_ids: NDArray[np.int64]
    decoder_document_ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def fill_rows(rows: Sequence[Sequence[Pair]], source_tokens: int, start: int) -> PairBatch:
    """``start``: the id that a decoder begins with."""
    longest = max(1, *(sum(len(target) for _, _, target in row) for row in rows))
    target_tokens = -(-longest // 8) * 8
    source, target = (len(rows), source_tokens), (len(rows), target_tokens)
    batch = PairBatch(
        input_ids=np.zeros(source, dtype=np.int64),
        document_ids=np.full(source, PADDING, dtype=np.int64),
        decoder_input_ids=np.full(target, start, dtype=np.int64),
        decoder_document_ids=np.full(target, PADDING, dtype=np.int64),
        labels=np.full(target, IGNORED, dtype=np.int64),
    )
    for line, row in enumerate(rows):
        at = begun = 0
        for number, read, said in row:
            span, places = slice(at, at + len(read)), slice(begun, begun + len(said))
            batch["input_ids"][line, span] = read
            batch["document_ids"][line, span] = number
            batch["labels"][line, places] = said
            batch["decoder_input_ids"][line, begun + 1 : places.stop] = said[:-1]
            batch["decoder_document_ids"][line, places] = number
            at, begun = span.stop, places.stop
    return batch


class PairRows:
    """A store's examples as pairs: what its mask leaves out is the source, what it has the target.

    ``rows`` of at most ``sequence_tokens`` on either side; longer ones are cut there.
    """

    def __init__(
        self,
        store: TokenStore,
        sequence_tokens: int,
        seed: int,
        start: int,
        mixture: Mixture | None = None,
    ) -> None:
        self.store, self.sequence_tokens, self.seed, self.start = store, sequence_tokens, seed, start
        said = np.concatenate([[0], np.cumsum(store.mask, dtype=np.int64)])[store.offsets]
        targets = np.diff(said)
        self.numbers = np.flatnonzero((targets > 0) & (np.diff(store.offsets) > targets))
        if not len(self.numbers):
            raise InvalidInput(
                'there is nothing to train on: the data holds no example with a source and a target, {"source": …, '
                '"target": …}',
                param="data",
            )
        longer = np.maximum(targets, np.diff(store.offsets) - targets)[self.numbers]
        longer, self.mixed = np.minimum(longer, sequence_tokens), None
        if mixture:
            of_pair = mixture.of_examples(self.numbers)
            row_of, sizes = pack_apart(longer, of_pair, len(mixture.names), sequence_tokens)
            self.rows = sum(sizes)
            read = np.minimum(np.diff(store.offsets) - targets, sequence_tokens)[self.numbers]
            tokens = np.bincount(row_of, read, minlength=self.rows).astype(np.int64)
            self.mixed = MixedRows(mixture, sizes, tokens, seed)
        else:
            row_of, self.rows = pack_lengths(longer, sequence_tokens)
        order = np.argsort(row_of, kind="stable")
        self.in_row = np.split(self.numbers[order], np.searchsorted(row_of[order], np.arange(1, self.rows)))
        self._order = (0, shuffled(self.rows, seed, 0))

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> PairBatch:
        """As ``Packer.batch``."""
        first = (step * ranks + rank) * micro_batch
        rows = [self._row(number) for number in range(first, first + micro_batch)]
        return fill_rows(
            [[self._pair(int(one)) for one in self.in_row[row]] for row in rows],
            self.sequence_tokens,
            self.start,
        )

    def _row(self, number: int) -> int:
        if self.mixed:
            return self.mixed.row(number)
        epoch, position = divmod(number, self.rows)
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(self.rows, self.seed, epoch))
        return int(self._order[1][position])

    def _pair(self, number: int) -> Pair:
        example = self.store[number]
        ids, mask = example.ids.astype(np.int64), example.mask
        return number, ids[~mask][: self.sequence_tokens], ids[mask][: self.sequence_tokens]
