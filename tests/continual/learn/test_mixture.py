"""The shares of a mixture, and that nothing but its seed decides its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from continual.learn.mixture import MAX_PASSES, mix, write_mixture
from continual.learn.reservoir import content_sha256
from continual.recipe import Replay
from everlearn.errors import InvalidInput
from train.data.store import Example, TokenStore, open_store, write_store

SHA = "0" * 64


def texts(first: int, count: int, tokens: int = 10) -> list[Example]:
    mask = np.arange(tokens) > 0
    return [Example(np.full(tokens, first + n, dtype=np.int32), mask) for n in range(count)]


@pytest.fixture
def new(tmp_path: Path) -> TokenStore:
    write_store(tmp_path / "new", texts(0, 40), tokenizer_sha256=SHA, vocab_size=500)
    return open_store(tmp_path / "new")


def test_each_source_has_its_share_of_the_new_tokens(new: TokenStore) -> None:
    earlier = {"a": texts(100, 50), "b": texts(200, 50)}
    sources = mix(new, earlier, texts(300, 50), Replay(share=0.5, base=0.25))
    assert {one.name: one.tokens for one in sources} == {
        "new": 400,
        "replay a": 100,
        "replay b": 100,
        "base": 100,
    }


def test_a_source_that_is_short_is_repeated_a_few_times_and_no_more(new: TokenStore) -> None:
    sources = mix(new, {"a": texts(100, 3)}, texts(300, 4), Replay(share=2, base=0.3))
    assert sources[1].report() == {"distinct": 3, "examples": 3 * MAX_PASSES, "tokens": 30 * MAX_PASSES}
    assert sources[2].report() == {"distinct": 4, "examples": 12, "tokens": 120}


def test_held_out_examples_are_not_trained_on(new: TokenStore) -> None:
    held = {content_sha256(new[3]), content_sha256(new[5])}
    assert set(range(40)) - set(mix(new, {}, [], Replay(), held)[0].taken) == {3, 5}


def test_a_file_with_nothing_new_in_it_is_refused(new: TokenStore) -> None:
    with pytest.raises(InvalidInput, match="nothing of the training file is new"):
        mix(new, {}, [], Replay(), {content_sha256(one) for one in new})


def test_the_seed_alone_decides_the_order(tmp_path: Path, new: TokenStore) -> None:
    sources = mix(new, {"a": texts(100, 50)}, [], Replay(share=1))
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        write_mixture(tmp_path / name, sources, new, seed)
    one, again, two = (open_store(tmp_path / name) for name in ("one", "again", "two"))
    assert one.card == again.card
    assert one.card.files["tokens.bin"] != two.card.files["tokens.bin"]
    assert one.card.tokens == two.card.tokens == 800


def test_old_and_new_are_spread_over_the_whole_run(tmp_path: Path, new: TokenStore) -> None:
    """Each quarter of the store holds about as much of the old as every other."""
    write_mixture(tmp_path / "mix", mix(new, {"a": texts(100, 50)}, [], Replay(share=1)), new, seed=0)
    old = np.array([one.ids[0] >= 100 for one in open_store(tmp_path / "mix")])
    assert all(0.2 < quarter.mean() < 0.8 for quarter in np.split(old, 4))
