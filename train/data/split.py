"""Which side of the split each document is on: train, held or test, by its own hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.data.collecting.collect import Collection
from train.data.options import DataOptions
from train.data.reading.sources import Source

TRAIN, HELD, TEST = 0, 1, 2
NAMES = ("train", "held", "test")


def split(
    collected: Sequence[Collection],
    given_held: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    files: Sequence[Source],
    options: DataOptions,
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Each document's side, int8 (documents,), and where its hash falls, from 0 to 1: by its own hash alone, so that
    nothing else changes a document's side.

    Where too few fall below ``held_fraction``, those of the smallest hashes are held out: an empty side could measure
    nothing. The ``test_fraction`` lies above it, so that it moves no document between the other two but to itself.
    """
    hashes = np.concatenate([each.hashes for each in collected])
    place = hashes[:, 16:24].copy().view(">u8")[:, 0] / 2.0**64
    if any(file.held for file in files) or options.held_fraction == 0:
        held, below = given_held, 0.0
    else:
        held, below = place < options.held_fraction, options.held_fraction
        there = np.flatnonzero(kept)
        least = min(max(options.min_held, len(there) // 4), 2 * options.min_held) or 1
        if len(there) >= 2 * least and (held & kept).sum() < least:
            held[there[np.argsort(place[there], kind="stable")[:least]]] = True
    sides = held.astype(np.int8) * HELD
    if options.test_fraction:
        sides[~held & (place >= below) & (place < below + options.test_fraction)] = TEST
    return sides, place
