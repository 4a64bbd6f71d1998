"""Which component each row of a mixture is of: a pure function of the row's number.

Row n falls on the fraction of n times the golden ratio, and each component owns an interval as wide as its share. So
any run of rows has nearly its shares of each (a sequence of low discrepancy, Weyl 1916), and how many rows of a component came
before is a sum of floors, found in logarithmic time: nothing is stored, however long the run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

MODULUS = 2**64
GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd."""
FIRST = MODULUS // 2


class Shares:
    """``weights``: at least 0, and one of them more. Integers throughout: the same on every machine."""

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(weight) for weight in weights]
        total = sum(exact)
        self.shares = [float(weight / total) for weight in exact]
        self._bounds = [0, *(int(upto * MODULUS / total) for upto in accumulate(exact))]

    def component(self, number: int) -> int:
        """Of row ``number``."""
        return bisect_right(self._bounds, (number * GOLDEN + FIRST) % MODULUS) - 1

    def count(self, component: int, rows: int) -> int:
        """How many of the first ``rows`` are of ``component``."""
        low, high = self._bounds[component : component + 2]
        return _below(rows, high) - _below(rows, low)


def _below(rows: int, bound: int) -> int:
    """How many of the first ``rows`` fall below ``bound``: x mod m < c where floor(x / m) > floor((x - c) / m)."""
    return rows + _floors(rows, FIRST) - _floors(rows, FIRST - bound + MODULUS)


def _floors(terms: int, offset: int) -> int:
    """The sum of floor((GOLDEN * i + offset) / MODULUS) over i from 0 to below ``terms``, by Euclid's algorithm."""
    total, m, a, b = 0, MODULUS, GOLDEN, offset
    while True:
        total += terms * (terms - 1) // 2 * (a // m) + terms * (b // m)
        a, b = a % m, b % m
        most = a * terms + b
        if most < m:
            return total
        terms, b = divmod(most, m)
        m, a = a, m
