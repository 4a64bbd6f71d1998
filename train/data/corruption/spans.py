"""Packed rows of texts in which spans are replaced by sentinels, and what was there as the target (T5, arXiv 1910.10683).

The text "Thank you for inviting me to your party" becomes "Thank you <extra_id_0> to your <extra_id_1>", and the target
"<extra_id_0> for inviting me <extra_id_1> party".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.data.corruption.pairs import Pair, PairBatch, fill_rows
from train.data.packing import PADDING, Packer
from train.data.splitmix import uniform

DENSITY, MEAN_LENGTH = 0.15, 3.0
"""T5's: the share of a text that is hidden, and the tokens of a span in the mean."""


class SpanRows:
    """Numbered batches of the rows of ``packer``, whose pieces end with ``ends``. What is hidden is a pure function of
    (seed, number of the row); numbers go on from epoch to epoch.

    ``sentinels``: ids of <extra_id_0>, <extra_id_1>, … ``start``: what the decoder begins with.
    """

    def __init__(self, packer: Packer, sentinels: tuple[int, ...], start: int, seed: int) -> None:
        self.packer, self.sentinels, self.start, self.seed = packer, sentinels, start, seed
        self.before, self.ends = packer.around
        self.rows, self.mixed = packer.rows, packer.mixed

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> PairBatch:
        """As ``Packer.batch``."""
        batch, first = self.packer.batch(step, micro_batch, rank, ranks), (step * ranks + rank) * micro_batch
        rows: list[list[Pair]] = []
        for line in range(micro_batch):
            ids, documents = batch["input_ids"][line], batch["document_ids"][line]
            borders = np.flatnonzero(np.diff(documents)) + 1
            pieces = zip([0, *borders], [*borders, len(ids)], strict=True)
            rows.append(
                [
                    self._pair(ids[a:b], int(documents[a]), first + line, a)
                    for a, b in pieces
                    if documents[a] != PADDING
                ]
            )
        return fill_rows(rows, self.packer.sequence_tokens, self.start)

    def _pair(self, piece: NDArray[np.int64], number: int, row: int, at: int) -> Pair:
        text = piece[len(self.before) : len(piece) - len(self.ends)]
        hidden = noise(len(text), len(self.sentinels), self.seed, row, at)
        if not hidden.any():
            return number, piece, text[:0]
        source = with_sentinels(text, hidden, self.sentinels)
        return number, np.concatenate([self.before, source, self.ends]), self._said(text, hidden)

    def _said(self, text: NDArray[np.int64], hidden: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Each hidden span behind its sentinel, and the end."""
        order = np.cumsum(hidden & ~np.concatenate([[False], hidden[:-1]])) - 1
        parts = [np.array([self.sentinels[n], *text[(order == n) & hidden]]) for n in range(order[-1] + 1)]
        return np.concatenate([*parts, self.ends]).astype(np.int64)


def with_sentinels(
    text: NDArray[np.int64], hidden: NDArray[np.bool_], sentinels: tuple[int, ...]
) -> NDArray[np.int64]:
    """The text with each run of ``hidden`` tokens as one sentinel, <extra_id_0> first."""
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    numbered = np.where(
        begins, np.array(sentinels)[np.minimum(np.cumsum(begins) - 1, len(sentinels) - 1)], text
    )
    return numbered[~hidden | begins]


def noise(
    length: int,
    most: int,
    *seeds: int,
    density: float = DENSITY,
    mean_length: float = MEAN_LENGTH,
) -> NDArray[np.bool_]:
    """Which of ``length`` tokens are hidden, bool (length,): in spans, at most ``most``, with something between two.

    A text may begin and end with a span or without one. None of one token alone.
    """
    hidden = np.zeros(length, dtype=np.bool_)
    if length < 2:
        return hidden
    count = min(max(1, round(length * density)), length - 1)
    spans = min(max(1, round(count / mean_length)), length - count + 1, most)
    drawn = uniform(2 * length, *seeds)
    inside = 1 + np.sort(np.argsort(drawn[: count - 1], kind="stable")[: spans - 1])
    lengths = np.diff([0, *inside, count])  # each at least 1
    rest = length - count - (spans - 1)  # of the others, beside one between two spans
    cuts = np.sort(np.argsort(drawn[length : length + rest + spans], kind="stable")[:spans])
    gaps = np.diff([-1, *cuts, rest + spans]) - 1  # each at least 0
    gaps[1:-1] += 1
    at = 0
    for gap, span in zip(gaps, lengths, strict=False):
        hidden[at + gap : at + gap + span] = True
        at += gap + span
    return hidden
