"""Sampling against plain definitions of what each parameter means."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serve.engines.onnx.decoding.sampling import (
    Sampler,
    SamplingOptions,
    TokenLogprobs,
    best,
    heaviest,
    log_probabilities,
    pick,
)
from serve.engines.onnx.decoding.softmax import BLOCK, Shares, Softmax

rows = arrays.arrays(np.float32, st.integers(1, 700), elements=st.floats(-30, 30, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@cache
def of_size(vocab: int) -> Softmax:
    return Softmax(vocab)


def shares_of(logits: np.ndarray, temperature: float = 1.0) -> Shares:
    return of_size(len(logits)).shares(logits[None], [temperature])[0]


def sample(
    sampler: Sampler, logits: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[int, TokenLogprobs | None]:
    own = logits.copy()
    sampler.adjust(own, allowed)
    return sampler.choose(own, shares_of(own, sampler.options.temperature) if sampler.draws else None)


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.9])
def test_draws_are_the_nucleus_in_its_own_proportions(top_p: float) -> None:
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32)
    mass = softmax(logits)
    order = np.argsort(-mass)
    nucleus = order[: int(np.searchsorted(np.cumsum(mass[order]), top_p)) + 1]
    sampler = Sampler(SamplingOptions(top_p=top_p, seed=4))
    drawn = np.bincount([sample(sampler, logits)[0] for _ in range(8000)], minlength=40) / 8000
    assert set(np.flatnonzero(drawn)) == set(nucleus)
    assert drawn[nucleus] == pytest.approx(mass[nucleus] / mass[nucleus].sum(), abs=0.02)


@given(logits=rows, wanted=st.floats(0.05, 0.99))
@settings(deadline=None)
def test_the_heaviest_are_the_fewest_that_suffice(logits: np.ndarray, wanted: float) -> None:
    weights = shares_of(logits).each.reshape(-1)
    mass = softmax(logits)
    kept = heaviest(weights, wanted * float(weights.sum(dtype=np.float64)))
    kept = kept[weights[kept] > 0]
    assert mass[kept].sum() >= wanted - 1e-5
    assert mass[kept[:-1]].sum() < wanted + 1e-5


@given(logits=rows, top_k=st.integers(1, 50))
@settings(deadline=None)
def test_top_k_are_the_k_best(logits: np.ndarray, top_k: int) -> None:
    shares = shares_of(logits)
    weights = shares.each.reshape(-1)
    kept, theirs = best(shares, top_k)
    assert np.array_equal(weights[kept], theirs)
    assert np.array_equal(np.sort(theirs), np.sort(weights[weights > 0])[-top_k:])


def test_top_k_and_top_p_together_keep_top_p_of_the_k() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    sampler = Sampler(SamplingOptions(top_k=3, top_p=0.7, seed=0))
    assert {sample(sampler, logits)[0] for _ in range(500)} == {0, 1}


@given(logits=rows, uniform=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_pick_inverts_the_cumulative_distribution(logits: np.ndarray, uniform: float) -> None:
    shares = shares_of(logits)
    index = pick(shares, shares.sums.cumsum(dtype=np.float64), uniform)
    cumulative = np.cumsum(softmax(logits))
    assert shares.each.reshape(-1)[index] > 0
    assert cumulative[index] >= uniform - 1e-5
    assert index == 0 or cumulative[index - 1] <= uniform + 1e-5


@given(logits=rows, share=st.floats(0, 0.5), enough=st.floats(0.05, 1))
@settings(deadline=None)
def test_what_is_heavier_is_told_exactly_below_enough(
    logits: np.ndarray, share: float, enough: float
) -> None:
    shares = shares_of(logits)
    weights = shares.each.astype(np.float64).reshape(-1)
    heavier, told = float(weights[weights > np.float32(share)].sum()), shares.heavier(share, enough)
    if told < enough:
        assert told == pytest.approx(heavier, abs=1e-6)
    else:
        assert heavier >= enough - 1e-6


@pytest.mark.parametrize("vocab", [1, BLOCK, 5 * BLOCK + 3])
def test_shares_are_the_softmax_whoever_else_is_there(vocab: int) -> None:
    logits = np.random.default_rng(1).normal(scale=5, size=(19, vocab)).astype(np.float32)
    logits[3, : vocab // 2] = -np.inf
    temperatures = [0.3 + row / 10 for row in range(19)]
    assert of_size(vocab).shares(logits[:0], []) == []
    together = of_size(vocab).shares(logits, temperatures)
    for row, temperature, shares in zip(logits, temperatures, together, strict=True):
        each = shares.each.reshape(-1)
        assert each[:vocab] == pytest.approx(softmax(row / temperature), abs=1e-6)
        assert not each[vocab:].any()
        assert shares.sums == pytest.approx(shares.each.sum(axis=1), rel=1e-5)
        assert np.array_equal(shares.largest, shares.each.max(axis=1))
        alone = shares_of(row, temperature)
        assert all(
            np.array_equal(getattr(alone, name), getattr(shares, name))
            for name in ("each", "sums", "largest")
        )


@pytest.mark.parametrize("temperature", [1e-7, 1e-38])
def test_the_lowest_temperatures_take_the_likeliest(temperature: float) -> None:
    logits = np.array([80.0, -300.0, 81.0, 80.999], np.float32)
    assert {sample(Sampler(SamplingOptions(temperature=temperature)), logits)[0] for _ in range(20)} == {2}


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1, seed=1))
    drawn = np.bincount([sample(sampler, logits)[0] for _ in range(20000)], minlength=4) / 20000
    assert drawn == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


def test_temperature_sharpens() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))
    sampler = Sampler(SamplingOptions(temperature=0.25, seed=1))
    drawn = [sample(sampler, logits)[0] for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.4**4 / (0.4**4 + 0.6**4), abs=0.03)


def test_the_same_seed_draws_the_same() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
    first, second = ([sample(Sampler(SamplingOptions(seed=seed)), row)[0] for row in rows] for seed in (5, 5))
    other = [sample(Sampler(SamplingOptions(seed=6)), row)[0] for row in rows]
    assert first == second != other


def test_min_p_drops_the_unlikely() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    sampler = Sampler(SamplingOptions(min_p=0.3, seed=1))
    assert {sample(sampler, logits)[0] for _ in range(500)} == {0, 1}


def test_bias_forces_and_forbids() -> None:
    logits = np.zeros(10, np.float32)
    sampler = Sampler(SamplingOptions(temperature=0, logit_bias={7: 100.0}))
    assert sample(sampler, logits)[0] == 7
    banned = Sampler(SamplingOptions(temperature=0, logit_bias={0: -100.0}))
    assert sample(banned, logits)[0] == 1


def test_penalties_count_what_was_generated() -> None:
    sampler = Sampler(SamplingOptions(temperature=0, frequency_penalty=0.6))
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    assert [sample(sampler, logits)[0] for _ in range(4)] == [0, 1, 0, 2]


def test_a_mask_leaves_only_what_is_allowed() -> None:
    sampler = Sampler(SamplingOptions(temperature=1, seed=0))
    allowed = np.array([False, True, False])
    assert {sample(sampler, np.zeros(3, np.float32), allowed)[0] for _ in range(50)} == {1}


@given(logits=rows, top=st.integers(0, 5))
@settings(deadline=None)
def test_logprobs_are_the_log_softmax(logits: np.ndarray, top: int) -> None:
    top = min(top, len(logits) - 1)
    expected = np.log(softmax(logits))
    result = log_probabilities(logits, 0, top)
    assert result.chosen == pytest.approx(expected[0], abs=1e-3)
    assert [value for _, value in result.top] == pytest.approx(np.sort(expected)[::-1][:top], abs=1e-3)


def test_logprobs_ignore_bias_and_temperature() -> None:
    logits = np.log(np.array([0.7, 0.3], np.float32))
    sampler = Sampler(SamplingOptions(temperature=0, logit_bias={1: 50.0}, top_logprobs=1))
    token, logprobs = sample(sampler, logits)
    assert token == 1
    assert logprobs is not None
    assert np.exp(logprobs.chosen) == pytest.approx(0.3)
    assert logprobs.top[0][0] == 0
