"""What the prefix cache keeps and finds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.engines.onnx.decoding.prefix_cache import PrefixCache, common_prefix

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=40).map(np.array)


def block(sequence: np.ndarray) -> np.ndarray:
    return np.zeros((2, 1, len(sequence), 4), np.float32)


def keep(cache: PrefixCache, sequence: np.ndarray, salt: str = "", exact_tokens: int = 0) -> None:
    cache.keep(sequence, block(sequence), salt, exact_tokens)


@given(left=tokens, right=tokens)
def test_common_prefix_is_the_longest(left: np.ndarray, right: np.ndarray) -> None:
    length = common_prefix(left, right)
    assert (left[:length] == right[:length]).all()
    assert length == min(len(left), len(right)) or left[length] != right[length]


@given(kept=st.lists(tokens, max_size=8), prompt=tokens)
def test_found_is_the_best_there_is_and_the_limit_holds(kept: list[np.ndarray], prompt: np.ndarray) -> None:
    cache = PrefixCache(60)
    for sequence in kept:
        if cache.wants(sequence, ""):
            keep(cache, sequence)
        assert cache.tokens <= 60
    best = max((common_prefix(entry.tokens, prompt) for entry in cache.entries), default=0)
    entry, length = cache.find(prompt, "", exact=False)
    assert length == (best if best >= 16 else 0)
    assert (entry is not None) == (length > 0)


def test_a_longer_conversation_replaces_its_beginning() -> None:
    cache = PrefixCache(1000)
    keep(cache, np.arange(50))
    keep(cache, np.arange(80))
    assert [len(entry.tokens) for entry in cache.entries] == [80]
    assert not cache.wants(np.arange(60), "")


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(60)
    first, second, third = (np.arange(20) + 100 * n for n in range(3))
    for sequence in (first, second, third):
        keep(cache, sequence)
    cache.find(first, "", exact=False)
    keep(cache, np.arange(20) + 900)
    assert [int(entry.tokens[0]) for entry in cache.entries] == [200, 0, 900]


def test_what_one_keeps_another_neither_finds_nor_replaces() -> None:
    cache = PrefixCache(1000)
    keep(cache, np.arange(50), "one")
    assert cache.find(np.arange(50), "two", exact=False) == (None, 0)
    assert cache.wants(np.arange(50), "two")
    keep(cache, np.arange(80), "two")
    assert cache.find(np.arange(50), "one", exact=False)[1] == 50


def test_only_what_was_computed_as_a_prompt_is_found_where_bits_count() -> None:
    cache = PrefixCache(1000)
    keep(cache, np.arange(80), exact_tokens=30)
    assert cache.find(np.arange(80), "", exact=True)[1] == 30
    assert cache.find(np.arange(80), "", exact=False)[1] == 80
