"""Examples to rows of equal length, and rows to batches, so that any batch is a pure function of its number.

Whole examples share a row, longest first, each where it leaves the least room (best fit decreasing: the bound of
first fit decreasing, found in constant time). Packed once; each epoch takes the rows in an order of its own.
Nothing has to be saved to resume, and any number of ranks reads the same global batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.mixing.mixed_rows import MixedRows, Mixture
from train.data.splitmix import shuffled
from train.data.store import Example, TokenStore

IGNORED = -100
"""The label of what is not a target, as torch's cross-entropy ignores it."""

PADDING = -1
"""The document id of what fills a row up."""


class Batch(TypedDict):
    """Each int64 (rows, sequence_tokens).

    ``labels[i]`` is ``input_ids[i]`` where that token is a target, to be predicted from position i - 1 (the
    convention of transformers: not shifted), else -100. The first token of a document is never a target.
    ``position_ids`` start at 0 in each document. ``document_ids`` are pieces' numbers (``Packer.piece_example``
    says whose), and -1 in the padding: tokens may attend to each other only where these are equal.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    document_ids: NDArray[np.int64]


class Packer:
    """Rows of ``sequence_tokens`` from stores, or from examples in memory. Longer examples are cut.

    ``around``: ids that every piece begins and ends with, as an encoder has them; an example that begins or ends with
    them has them no second time.

    ``rows``, ``tokens`` and ``targets`` are per epoch; an epoch holds every token exactly once. With a ``mixture``, each
    row is of one component, and ``mixed`` says whose turn it is: only what all components hold together is per epoch then.
    ``piece_example``: int64 (pieces,), the example each piece is of, counted through all sources in order.
    """

    def __init__(
        self,
        sources: Sequence[TokenStore] | Sequence[Example] | TokenStore,
        sequence_tokens: int,
        seed: int,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
        mixture: Mixture | None = None,
    ) -> None:
        marks = sum(map(len, around))
        if sequence_tokens < 2 + marks:
            raise InvalidInput(f"sequence_tokens is {sequence_tokens}; it must be at least {2 + marks}")
        self.sequence_tokens = sequence_tokens
        self.seed = seed
        self._given = sources
        self._sources = _sources(sources)
        self.around = tuple(np.array(ids, dtype=np.int64) for ids in around)
        spans = [_without(source, *self.around) for source in self._sources]
        lengths = [length for _, length in spans]
        starts = [start for start, _ in spans]
        self._piece_source, self._piece_start, self._piece_length, self.piece_example = _cut(
            starts, lengths, sequence_tokens - marks
        )
        if not len(self._piece_length):
            raise InvalidInput("there is nothing to train on: the data holds no examples")
        self._mixture, self.mixed = mixture, None
        lengths = self._piece_length + marks
        if mixture:
            of_piece = mixture.of_examples(self.piece_example)
            row_of_piece, sizes = pack_apart(lengths, of_piece, len(mixture.names), sequence_tokens)
            self.rows = sum(sizes)
            tokens = np.bincount(row_of_piece, lengths, minlength=self.rows).astype(np.int64)
            self.mixed = MixedRows(mixture, sizes, tokens, seed)
        else:
            row_of_piece, self.rows = pack_lengths(lengths, sequence_tokens)
        self._pieces = np.argsort(row_of_piece, kind="stable")  # pieces in the order of their rows
        self._row_start = np.searchsorted(row_of_piece[self._pieces], np.arange(self.rows + 1))
        self.tokens = int(self._piece_length.sum()) + marks * len(self._piece_length)
        self.targets = self._count_targets()
        self._order: tuple[int, NDArray[np.int64]] = (0, shuffled(self.rows, seed, 0))

    def marked(self, before: Sequence[int], after: Sequence[int]) -> Packer:
        """The same examples in rows of their own, each piece between these ids."""
        return Packer(self._given, self.sequence_tokens, self.seed, (before, after), self._mixture)

    def pieces_of(self, tokens: NDArray[np.bool_]) -> int:
        """How many pieces have nothing but ``tokens``, bool (vocabulary,), between their marks."""
        count = 0
        for number, source in enumerate(self._sources):
            of_source = self._piece_source == number
            starts = self._piece_start[of_source]
            if len(starts):
                bounds = np.stack([starts, starts + self._piece_length[of_source]], 1).ravel()
                flags = np.append(tokens[source.tokens], False)
                count += int(np.logical_and.reduceat(flags, bounds)[::2].sum())
        return count

    def batches_per_epoch(self, micro_batch: int, ranks: int = 1) -> int:
        """Steps until every row was seen; the last one may hold the first rows of the next epoch."""
        return math.ceil(self.rows / (micro_batch * ranks))

    def epochs(self, steps: int, micro_batch: int, ranks: int = 1) -> float:
        """How often ``steps`` steps go through the data."""
        return steps * micro_batch * ranks / self.rows

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows ``(step * ranks + rank) * micro_batch`` and following of the endless sequence of epochs.

        So a step's rows over all ranks are the rows that one rank with ``micro_batch * ranks`` gets, and what
        matters for resuming with other ranks is only how many rows were seen.
        """
        if not 0 <= rank < ranks or step < 0 or micro_batch < 1:
            raise ValueError(f"no batch at step {step} for rank {rank} of {ranks}, micro batch {micro_batch}")
        return self.rows_of(self.row_numbers(step, micro_batch, rank, ranks))

    def row_numbers(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> list[int]:
        """The rows of that batch, by numbers that are the same in every epoch."""
        first = (step * ranks + rank) * micro_batch
        return [self._row(number) for number in range(first, first + micro_batch)]

    def rows_of(self, numbers: Sequence[int]) -> Batch:
        """The rows with these numbers."""
        shape = (len(numbers), self.sequence_tokens)
        batch = Batch(
            input_ids=np.zeros(shape, dtype=np.int64),
            labels=np.full(shape, IGNORED, dtype=np.int64),
            position_ids=np.zeros(shape, dtype=np.int64),
            document_ids=np.full(shape, PADDING, dtype=np.int64),
        )
        for line, row in enumerate(numbers):
            self._fill(batch, line, row)
        return batch

    def _row(self, number: int) -> int:
        if self.mixed:
            return self.mixed.row(number)
        epoch, position = divmod(number, self.rows)
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(self.rows, self.seed, epoch))
        return int(self._order[1][position])

    def _fill(self, batch: Batch, line: int, row: int) -> None:
        at = 0
        for piece in self._pieces[self._row_start[row] : self._row_start[row + 1]]:
            ids, mask = self._piece(piece)
            span = slice(at, at + len(ids))
            batch["input_ids"][line, span] = ids
            batch["labels"][line, span] = np.where(mask, ids, IGNORED)
            batch["labels"][line, at] = IGNORED
            batch["position_ids"][line, span] = np.arange(len(ids))
            batch["document_ids"][line, span] = piece
            at += len(ids)
        batch["position_ids"][line, at:] = np.arange(self.sequence_tokens - at)

    def _piece(self, piece: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        source = self._sources[self._piece_source[piece]]
        span = slice(self._piece_start[piece], self._piece_start[piece] + self._piece_length[piece])
        ids, mask = np.array(source.tokens[span], dtype=np.int64), np.array(source.mask[span])
        before, after = self.around
        if not len(before) + len(after):
            return ids, mask
        marks = len(before), len(after)
        return np.concatenate([before, ids, after]), np.pad(mask, marks)

    def _count_targets(self) -> int:
        """First tokens of pieces do not count, whatever the mask says of them."""
        total = 0
        for number, source in enumerate(self._sources):
            starts = self._piece_start[self._piece_source == number]
            total += int(np.count_nonzero(source.mask)) - int(np.count_nonzero(source.mask[starts]))
        return total


class _Memory:
    """Examples end to end in memory, as a store holds them on disk."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.offsets = np.cumsum([0, *(len(example) for example in examples)], dtype=np.int64)
        self.tokens = np.concatenate([np.zeros(0, np.int32), *(example.ids for example in examples)])
        self.mask = np.concatenate([np.zeros(0, np.bool_), *(example.mask for example in examples)])


def _sources(given: Sequence[TokenStore] | Sequence[Example] | TokenStore) -> list[TokenStore | _Memory]:
    if isinstance(given, TokenStore):
        return [given]
    stores = [item for item in given if isinstance(item, TokenStore)]
    examples = [item for item in given if isinstance(item, Example)]
    return [*stores, *([_Memory(examples)] if examples else [])]


def _without(
    source: TokenStore | _Memory, before: NDArray[np.int64], after: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length of each example without the ids that it begins and ends with; both int64 (examples,)."""
    starts, lengths = np.array(source.offsets[:-1]), np.diff(source.offsets)
    for ids, at_end in ((before, False), (after, True)):
        if not len(ids):
            continue
        there = np.flatnonzero(lengths >= len(ids))
        first = (starts + lengths - len(ids) if at_end else starts)[there]
        found = source.tokens[first[:, None] + np.arange(len(ids))] == ids  # (examples, ids)
        marked = there[found.all(1)]
        lengths[marked] -= len(ids)
        starts[marked] += 0 if at_end else len(ids)
    return starts, lengths


def _cut(
    starts: list[NDArray[np.int64]], lengths: list[NDArray[np.int64]], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each piece's source, first token in it, length, and example; all int64 (pieces,)."""
    none = np.zeros(0, dtype=np.int64)
    source = np.concatenate([none, *(np.full(len(each), n) for n, each in enumerate(lengths))])
    start, length = np.concatenate([none, *starts]), np.concatenate([none, *lengths])
    pieces = -(-length // size)
    example = np.repeat(np.arange(len(length)), pieces)
    part = np.arange(len(example)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return (
        source[example],
        start[example] + part * size,
        np.minimum(length[example] - part * size, size),
        example,
    )


def pack_lengths(lengths: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], int]:
    """The row of each piece, int64 (pieces,), and how many rows there are.

    ``free`` has bit r set where some row has room for exactly r more tokens.
    """
    row_of_piece = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(size + 1)]
    free = rows = 0
    decreasing = np.argsort(-lengths, kind="stable")
    for piece, length in zip(decreasing.tolist(), lengths[decreasing].tolist(), strict=True):
        fitting = free >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                free &= ~(1 << room)
        else:
            room, row = size, rows
            rows += 1
        row_of_piece[piece] = row
        if left := room - length:
            with_room[left].append(row)
            free |= 1 << left
    return row_of_piece, rows


def pack_apart(
    lengths: NDArray[np.int64], component: NDArray[np.int64], components: int, size: int
) -> tuple[NDArray[np.int64], list[int]]:
    """As :func:`pack_lengths` with rows of one component each, numbered one component after the other; and how many each
    has."""
    row_of_piece, sizes = np.empty(len(lengths), dtype=np.int64), list[int]()
    for number in range(components):
        here = component == number
        rows, count = pack_lengths(lengths[here], size)
        row_of_piece[here] = rows + sum(sizes)
        sizes.append(count)
    return row_of_piece, sizes
