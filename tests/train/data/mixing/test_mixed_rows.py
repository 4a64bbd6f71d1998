"""Mixtures: shares that hold over any run of rows, nothing skipped within a component, the same for any number of ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import InvalidInput
from train.data.mixing.mixed_rows import MixedRows, Mixture
from train.data.mixing.shares import Shares
from train.data.packing import PADDING, Packer
from train.data.store import Example

weights = st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any)
STAGES = ((0, (2.0, 1.0, 0.0)), (5, (0.0, 1.0, 1.0)), (9, (1.0, 0.5, 3.0)))


def mixed(sizes: tuple[int, ...] = (5, 40, 7), step_rows: int = 4, seed: int = 0) -> MixedRows:
    names = [f"part-{n}" for n in range(len(sizes))]
    mixture = Mixture(dict(zip(names, sizes, strict=True)), STAGES, step_rows)
    return MixedRows(mixture, sizes, np.arange(sum(sizes)) + 1, seed)


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 400), st.integers(0, 2**40))
def test_any_run_of_rows_has_nearly_its_shares(given_weights: list[float], rows: int, first: int) -> None:
    shares = Shares(given_weights)
    turns = [shares.component(first + n) for n in range(rows)]
    for component, share in enumerate(shares.shares):
        counted = shares.count(component, first + rows) - shares.count(component, first)
        assert counted == turns.count(component)
        assert abs(counted - share * rows) < 3
        assert share or not counted
    assert sum(shares.count(each, first) for each in range(len(given_weights))) == first


@pytest.mark.parametrize("seed", [0, 7])
def test_each_component_goes_through_its_rows_in_epochs_of_its_own(seed: int) -> None:
    rows, seen, tokens = mixed(seed=seed), {n: list[int]() for n in range(3)}, dict.fromkeys(range(3), 0)
    bounds = [0, 5, 45, 52]
    for number in range(500):
        row = rows.row(number)
        component = int(np.searchsorted(bounds, row, side="right")) - 1
        assert rows.mixture.place(number) == (component, len(seen[component]))
        seen[component].append(row)
        tokens[component] += row + 1
        assert list(rows.seen(number + 1).values()) == list(tokens.values())
        assert rows.mixture.counts(number + 1) == [len(each) for each in seen.values()]
    for component, (low, high) in enumerate(pairwise(bounds)):
        size = high - low
        whole = [seen[component][at : at + size] for at in range(0, len(seen[component]) - size + 1, size)]
        assert whole and all(sorted(epoch) == list(range(low, high)) for epoch in whole)
        assert size > 5 or len({tuple(epoch) for epoch in whole}) > 1, "each epoch has an order of its own"


def test_the_weights_change_at_the_step_that_the_curriculum_says() -> None:
    rows = mixed()
    turns = [rows.mixture.place(number)[0] for number in range(14 * 4)]
    assert 2 not in turns[:20] and 0 not in turns[20:36] and {0, 1, 2} == set(turns[36:])
    assert turns[:20].count(0) in (13, 14) and turns[20:36].count(1) in (7, 8, 9)


def test_a_component_without_rows_is_told_by_name() -> None:
    with pytest.raises(InvalidInput, match="nothing is left of 'part-1'"):
        mixed((5, 0, 7))


def test_rows_are_of_one_component_and_the_same_for_any_ranks() -> None:
    counts = {"few": 6, "many": 60}
    examples = [
        Example(
            np.arange(n, n + 3 + n % 5, dtype=np.int32) % 50 + 50 * (n >= 6),
            np.ones(3 + n % 5, dtype=np.bool_),
        )
        for n in range(66)
    ]
    packer = Packer(examples, 16, 3, mixture=Mixture(counts, ((0, (1.0, 1.0)),), 4)).marked([101], [102])
    assert packer.mixed
    alone = packer.batch(0, 48)
    for row, documents in zip(alone["input_ids"], alone["document_ids"], strict=True):
        words = row[(documents != PADDING) & (row < 101)]
        assert len({bool(each) for each in words >= 50}) == 1
    few = [bool((row[row < 101][0]) < 50) for row in alone["input_ids"][:, 1:]]
    assert 22 <= sum(few) <= 26 and all(1 <= sum(few[at : at + 4]) <= 3 for at in range(0, 48, 4))
    assert sum(packer.mixed.seen(48).values()) == (alone["document_ids"] != PADDING).sum()
    for ranks, micro_batch in ((2, 2), (4, 1), (3, 4)):
        steps = range(48 // (ranks * micro_batch))
        parts = [packer.batch(step, micro_batch, rank, ranks) for step in steps for rank in range(ranks)]
        for key, value in alone.items():
            assert np.array_equal(np.concatenate([part[key] for part in parts]), value)  # type: ignore[literal-required]
