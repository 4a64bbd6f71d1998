"""Stores: what goes in comes out, whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from everlearn.errors import Conflict, Corrupt, NotFound
from train.data.store import Example, StoreCard, open_store, write_store

SHA = "0" * 64


def example(*ids: int) -> Example:
    mask = np.ones(len(ids), dtype=np.bool_)
    mask[1::3] = False
    return Example(np.array(ids, dtype=np.int32), mask)


def write(path: Path, examples: list[Example], vocab_size: int = 500) -> StoreCard:
    return write_store(path, iter(examples), tokenizer_sha256=SHA, vocab_size=vocab_size)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_examples_come_back_as_they_were_but_for_the_first_token_which_is_no_target(
    tmp_path: Path, vocab_size: int, dtype: str
) -> None:
    given = [example(1, 2, 3, vocab_size - 1), example(7), example(*range(1000))]
    card = write(tmp_path / "deep" / "store", given, vocab_size)
    store = open_store(tmp_path / "deep" / "store", verify=True)
    assert (card, len(store), store.tokens.dtype) == (store.card, 3, dtype)
    for before, after in zip(given, store, strict=True):
        assert np.array_equal(before.ids, after.ids) and after.ids.dtype == np.int32
        assert np.array_equal(before.mask[1:], after.mask[1:]) and not after.mask[0]
    assert np.array_equal(store[-1].ids, given[2].ids)
    assert card.documents == 3 and card.tokens == 1005
    assert card.targets == sum(int(after.mask.sum()) for after in store)
    with pytest.raises(IndexError):
        store[3]


def test_a_store_without_examples_can_be_opened(tmp_path: Path) -> None:
    write(tmp_path / "store", [])
    assert len(open_store(tmp_path / "store", verify=True)) == 0


def test_the_same_examples_are_written_again_without_a_change_and_others_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "store", [example(1, 2)])
    before = (tmp_path / "store" / "tokens.bin").stat()
    assert write(tmp_path / "store", [example(1, 2)]) == first
    assert (tmp_path / "store" / "tokens.bin").stat() == before
    with pytest.raises(Conflict, match="already holds other examples"):
        write(tmp_path / "store", [example(1, 3)])


@pytest.mark.parametrize(
    "wrong", [example(1, 500), example(-1, 2), example(), Example(np.arange(3), np.ones(2, bool))]
)
def test_an_example_that_no_tokenizer_makes_is_refused_and_leaves_nothing(
    tmp_path: Path, wrong: Example
) -> None:
    with pytest.raises(ValueError, match=r"ids reach from|must both be"):
        write(tmp_path / "store", [example(1, 2), wrong])
    assert not (tmp_path / "store").exists() and not list(tmp_path.glob(".staging/stage-*"))


@pytest.mark.parametrize("name", ["tokens.bin", "mask.bin", "offsets.bin", "card.json"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "store", [example(1, 2, 3)])
    file = tmp_path / "store" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(Corrupt, match=name):
        open_store(tmp_path / "store")
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(Corrupt, match=name):
        open_store(tmp_path / "store", verify=True)
    file.unlink()
    with pytest.raises((Corrupt, NotFound), match=name):
        open_store(tmp_path / "store")


WRITE_SLOWLY = """
import sys, time
from pathlib import Path
import numpy as np
from train.data.store import Example, write_store
def examples():
    for n in range(10**6):
        yield Example(np.arange(100, dtype=np.int32), np.ones(100, bool))
        if n == 2000: print("writing", flush=True); time.sleep(60)
write_store(Path(sys.argv[1]), examples(), tokenizer_sha256="0" * 64, vocab_size=500)
"""


def test_a_killed_writer_leaves_no_store_and_the_next_one_clears_its_rest(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, tmp_path / "store"], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert not (tmp_path / "store").exists() and len(list(tmp_path.glob(".staging/stage-*/tokens.bin"))) == 1
    write(tmp_path / "store", [example(1, 2)])
    assert len(open_store(tmp_path / "store", verify=True)) == 1
    assert not list(tmp_path.glob(".staging/stage-*"))
