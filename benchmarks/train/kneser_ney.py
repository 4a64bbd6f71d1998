"""An n-gram model with modified Kneser-Ney smoothing (Chen and Goodman, 1998), over token ids: the baseline of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class KneserNey:
    """Interpolated, with three discounts for each order. ``texts``: ids of each, int64 (n,).

    An n-gram is one number, in the base of the vocabulary and one more: ``order`` 5 takes up to 6,000 tokens.
    """

    def __init__(self, texts: Sequence[Ids], vocabulary: int, order: int = 5) -> None:
        self.order, self.base = order, vocabulary + 1
        if float(self.base) ** order >= 2.0**63:
            raise ValueError(f"{vocabulary} tokens are too many for {order}-grams in 64 bits")
        padded = [self._padded(text) for text in texts]
        grams = np.concatenate([self._grams(text, order) for text in padded])
        self.tables: list[tuple[Ids, Ids]] = []
        for n in range(order, 0, -1):
            keys, counts = np.unique(grams, return_counts=True)
            self.tables.insert(0, (keys, counts))
            grams = keys % self.base ** (n - 1)  # each different n-gram continues a shorter one once
        self.discounts = [self._discounts(counts) for _, counts in self.tables]
        self.histories = [self._history(n) for n in range(order)]

    def log_probabilities(self, text: Ids) -> NDArray[np.float64]:
        """Of each token after those before it, in nats, float64 (n,)."""
        grams = self._grams(self._padded(text), self.order)
        probability = np.full(len(grams), 1.0 / (self.base - 1))
        for n in range(1, self.order + 1):
            keys, counts = self.tables[n - 1]
            tail = grams % self.base**n
            found = lookup(keys, counts, tail).astype(np.float64)
            totals, freed = self.histories[n - 1]
            histories = self.history_keys[n - 1]
            at = np.minimum(np.searchsorted(histories, tail // self.base), len(histories) - 1)
            known = histories[at] == tail // self.base
            total, free = totals[at], freed[at]
            seen = np.maximum(found - self._discount(n - 1, found), 0) + free * probability
            probability = np.where(known, seen / np.maximum(total, 1), probability)
        return np.log(probability)

    def _padded(self, text: Ids) -> Ids:
        """Ids from 1; 0 is the begin of a text."""
        return np.concatenate([np.zeros(self.order - 1, np.int64), text + 1])

    def _grams(self, padded: Ids, n: int) -> Ids:
        windows = np.lib.stride_tricks.sliding_window_view(padded, n)
        return windows @ (self.base ** np.arange(n - 1, -1, -1, dtype=np.int64))

    def _discounts(self, counts: Ids) -> NDArray[np.float64]:
        """For counts of 0, 1, 2, and 3 and more."""
        n = [max(1, int((counts == k).sum())) for k in range(1, 5)]
        y = n[0] / (n[0] + 2 * n[1])
        return np.array([0.0, *(max(0.0, k - (k + 1) * y * n[k] / n[k - 1]) for k in (1, 2, 3))])

    def _discount(self, order: int, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.discounts[order][np.minimum(counts, 3).astype(np.int64)]

    def _history(self, order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each history of this order: what followed it in all, and what the discounts free."""
        if order == 0:
            self.history_keys: list[Ids] = []
        keys, counts = self.tables[order]
        histories, place = np.unique(keys // self.base, return_inverse=True)
        self.history_keys.append(histories)
        totals = np.bincount(place, weights=counts)
        return totals, np.bincount(place, weights=self._discount(order, counts.astype(np.float64)))


def lookup(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """The value at each wanted key; 0 where it is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
