"""Numbers that look random and are the same on every machine and in every version of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The step of Steele, Lea and Flood's generator (2014): a bijection that changes half the bits of its input."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(count: int, *seeds: int) -> NDArray[np.float64]:
    """``count`` numbers from 0 to below 1 that depend on nothing but these integers, float64 (count,)."""
    state = np.zeros(1, dtype=np.uint64)
    for seed in seeds:
        state = splitmix64(state ^ splitmix64(np.array([int(seed) % 2**64], dtype=np.uint64)))
    drawn = splitmix64(splitmix64(state) + np.arange(count, dtype=np.uint64))
    return (drawn >> np.uint64(11)) / 2.0**53


def shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of the rows that depends on nothing but these three numbers, on any machine and version.

    Sorted by splitmix64 (Steele, Lea and Flood, 2014) of the row's number.
    """
    state = splitmix64(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(epoch)
    keys = splitmix64(splitmix64(state) + np.arange(rows, dtype=np.uint64))
    return np.argsort(keys, kind="stable")
