"""Packing: nothing lost, nothing twice, nothing seen across documents, the same batches for any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import InvalidInput
from train.data.packing import IGNORED, PADDING, Batch, Packer
from train.data.store import Example, open_store, write_store

lengths = st.lists(st.integers(1, 70), min_size=1, max_size=40)
sizes = st.integers(2, 32)
seeds = st.integers(0, 2**32)


def numbered(lengths: list[int], first: int = 0) -> list[Example]:
    """Every token of every example has an id of its own; each third is no target."""
    starts = np.cumsum([first, *lengths])
    ids = [
        np.arange(start, start + length, dtype=np.int32)
        for start, length in zip(starts, lengths, strict=False)
    ]
    return [Example(each, each % 3 != 0) for each in ids]


def joined(batches: list[Batch]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}  # type: ignore[literal-required]


def epoch(packer: Packer, number: int = 0) -> dict[str, np.ndarray]:
    return joined([packer.batch(number * packer.rows + row, 1) for row in range(packer.rows)])


@settings(max_examples=80, deadline=None)
@given(lengths, sizes, seeds)
def test_an_epoch_holds_every_token_once_in_its_own_document(
    lengths: list[int], size: int, seed: int
) -> None:
    examples = numbered(lengths)
    packer = Packer(examples, size, seed)
    for rows in (epoch(packer), epoch(packer, 3)):
        real = rows["document_ids"] != PADDING
        assert np.array_equal(np.sort(rows["input_ids"][real]), np.arange(sum(lengths)))
        assert (rows["labels"][~real] == IGNORED).all()
        owner = np.repeat(np.arange(len(lengths)), lengths)[rows["input_ids"]]
        assert np.array_equal(packer.piece_example[rows["document_ids"][real]], owner[real])
        for piece in range(len(packer.piece_example)):
            row, column = np.nonzero(rows["document_ids"] == piece)
            assert len(set(row)) == 1 and np.array_equal(
                column, np.arange(column[0], column[0] + len(column))
            )
            ids = rows["input_ids"][row, column]
            assert np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
            assert np.array_equal(rows["position_ids"][row, column], np.arange(len(ids)))
            expected = np.where(ids % 3 != 0, ids, IGNORED)
            expected[0] = IGNORED
            assert np.array_equal(rows["labels"][row, column], expected)
        assert packer.tokens == real.sum() == sum(lengths)
        assert packer.targets == (rows["labels"] != IGNORED).sum()


@settings(max_examples=60, deadline=None)
@given(lengths, sizes, seeds, st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), st.integers(0, 40))
def test_the_ranks_of_a_step_together_get_what_one_rank_would(
    lengths: list[int], size: int, seed: int, micro_batch: int, ranks: int, step: int
) -> None:
    packer = Packer(numbered(lengths), size, seed)
    alone = packer.batch(step, micro_batch * ranks)
    shared = joined(
        [Packer(numbered(lengths), size, seed).batch(step, micro_batch, r, ranks) for r in range(ranks)]
    )
    for name, values in alone.items():
        assert np.array_equal(values, shared[name])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), seeds)
def test_no_two_rows_would_fit_into_one(lengths: list[int], seed: int) -> None:
    rows = epoch(Packer(numbered(lengths), 32, seed))
    used = np.sort((rows["document_ids"] != PADDING).sum(axis=1))
    assert len(used) == 1 or used[0] + used[1] > 32


def test_batches_do_not_depend_on_what_was_asked_before() -> None:
    examples = numbered([5, 9, 3, 17, 4, 8, 30, 2])
    used, asked = Packer(examples, 16, 7), [0, 40, 3, 39, 0]
    for step in asked:
        assert all(np.array_equal(a, b) for a, b in zip(
            used.batch(step, 2).values(), Packer(examples, 16, 7).batch(step, 2).values(), strict=True
        ))  # fmt: skip


def test_epochs_and_seeds_have_orders_of_their_own_that_never_change() -> None:
    examples = numbered([16] * 50)
    first, second = (Packer(examples, 16, 7).batch(step, 50)["document_ids"][:, 0] for step in (0, 1))
    other = Packer(examples, 16, 8).batch(0, 50)["document_ids"][:, 0]
    assert not np.array_equal(first, second) and not np.array_equal(first, other)
    assert first[:8].tolist() == [17, 8, 38, 1, 45, 30, 43, 22]


def test_stores_and_examples_in_memory_give_the_same_batches(tmp_path: Path) -> None:
    one, two = numbered([5, 40, 3, 17]), numbered([9, 2, 21], first=65)
    stores = []
    for name, examples in (("one", one), ("two", two)):
        write_store(tmp_path / name, examples, tokenizer_sha256="0" * 64, vocab_size=100)
        stores.append(open_store(tmp_path / name))
    on_disk, in_memory = Packer(stores, 16, 3), Packer([*one, *two], 16, 3)
    assert on_disk.targets == in_memory.targets
    for step in range(10):
        pair = on_disk.batch(step, 3), in_memory.batch(step, 3)
        assert all(np.array_equal(pair[0][name], pair[1][name]) for name in pair[0])  # type: ignore[literal-required]
        assert all(values.dtype == np.int64 and values.shape == (3, 16) for values in pair[0].values())


def test_fifty_thousand_examples_are_packed_tightly() -> None:
    lengths = np.random.default_rng(0).integers(2, 400, 50_000)
    mask = np.ones(400, dtype=np.bool_)
    ids = np.zeros(400, dtype=np.int32)
    packer = Packer([Example(ids[:n], mask[:n]) for n in lengths], 512, seed=0)
    assert packer.tokens / (packer.rows * 512) > 0.98


def test_epochs_and_batches_are_counted() -> None:
    packer = Packer(numbered([16] * 10), 16, 0)
    assert packer.rows == 10
    assert packer.batches_per_epoch(2, ranks=2) == 3
    assert packer.epochs(steps=5, micro_batch=2, ranks=2) == 2.0


def test_nothing_to_pack_is_said() -> None:
    with pytest.raises(InvalidInput, match="holds no examples"):
        Packer([], 16, 0)
    with pytest.raises(InvalidInput, match="sequence_tokens is 1"):
        Packer(numbered([3]), 1, 0)
    with pytest.raises(ValueError, match="no batch at step 0 for rank 2 of 2"):
        Packer(numbered([3]), 16, 0).batch(0, 1, 2, 2)
