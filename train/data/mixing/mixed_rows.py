"""The endless sequence of a mixture's rows: whose turn it is, which of its rows comes next, and what has been seen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.mixing.options import Stages
from train.data.mixing.shares import Shares
from train.data.splitmix import shuffled, splitmix64


class Mixture:
    """Which examples each component has, and its share from which row on.

    ``examples``: how many each component has, by name, in the order in which the store holds them. ``step_rows``: of one
    optimizer step, over all ranks.
    """

    def __init__(self, examples: Mapping[str, int], stages: Stages, step_rows: int) -> None:
        self.names, self.sizes = list(examples), list(examples.values())
        self._ends = np.cumsum(self.sizes)
        self.step_rows = step_rows
        self._first = [step * step_rows for step, _ in stages]
        self._shares = [Shares(weights) for _, weights in stages]
        self._before = [[0] * len(examples)]
        for number in range(1, len(stages)):
            self._before.append(self.counts(self._first[number]))

    def of_examples(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The component of each example."""
        return np.searchsorted(self._ends, numbers, side="right")

    def place(self, number: int) -> tuple[int, int]:
        """The component of row ``number``, and how many of its rows come before."""
        stage, row = self._stage(number)
        shares = self._shares[stage]
        component = shares.component(row)
        return component, self._before[stage][component] + shares.count(component, row)

    def counts(self, rows: int) -> list[int]:
        """How many of the first ``rows`` are of each component."""
        stage, row = self._stage(max(0, rows - 1))
        row += rows > 0
        before, shares = self._before[stage], self._shares[stage]
        return [count + shares.count(component, row) for component, count in enumerate(before)]

    def _stage(self, number: int) -> tuple[int, int]:
        stage = min(bisect_right(self._first, number), len(self._before)) - 1
        return stage, number - self._first[stage]


class MixedRows:
    """Rows of a mixture by their place in the run. Each component goes through its rows in an order of its own, which is
    another one in each of its epochs.

    ``sizes``: the rows of each component, in its order: they have the numbers from 0 on. ``tokens``: of each row, int64
    (rows,). Raises InvalidInput for a component without any.
    """

    def __init__(self, mixture: Mixture, sizes: Sequence[int], tokens: NDArray[np.int64], seed: int) -> None:
        if 0 in sizes:
            name = mixture.names[list(sizes).index(0)]
            raise InvalidInput(f"data.mixture: nothing is left of {name!r} to train on", param="data.mixture")
        self.mixture, self.sizes, self._tokens = mixture, list(sizes), tokens
        self._starts = np.cumsum([0, *sizes])
        drawn = splitmix64(np.arange(len(sizes), dtype=np.uint64) + np.uint64(seed % 2**64))
        self._seeds = [int(each) for each in drawn]
        self._orders: dict[int, _Order] = {}

    def row(self, number: int) -> int:
        """The row that is the ``number``-th of the run."""
        component, before = self.mixture.place(number)
        epoch, position = divmod(before, self.sizes[component])
        return int(self._order(component, epoch).rows[position])

    def seen(self, rows: int) -> dict[str, int]:
        """Tokens of each component, by name, in the first ``rows`` of the run."""
        found: dict[str, int] = {}
        for component, count in enumerate(self.mixture.counts(rows)):
            epoch, position = divmod(count, self.sizes[component])
            tokens = self._order(component, epoch).tokens
            found[self.mixture.names[component]] = epoch * int(tokens[-1]) + int(tokens[position])
        return found

    def epochs(self, rows: int) -> dict[str, float]:
        """How often the first ``rows`` of the run go through each component."""
        counts = self.mixture.counts(rows)
        return {
            name: count / size
            for name, count, size in zip(self.mixture.names, counts, self.sizes, strict=True)
        }

    def _order(self, component: int, epoch: int) -> _Order:
        known = self._orders.get(component)
        if known is None or known.epoch != epoch:
            rows = shuffled(self.sizes[component], self._seeds[component], epoch) + self._starts[component]
            tokens = np.concatenate([[0], np.cumsum(self._tokens[rows])])
            known = self._orders[component] = _Order(epoch, rows, tokens)
        return known


@dataclass(frozen=True)
class _Order:
    """A component's rows in one epoch, and the tokens before each of them and before the end."""

    epoch: int
    rows: NDArray[np.int64]
    tokens: NDArray[np.int64]


@runtime_checkable
class Mixed(Protocol):
    """Numbered batches that can be a mixture's."""

    mixed: MixedRows | None
