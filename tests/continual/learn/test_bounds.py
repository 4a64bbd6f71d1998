"""The gate's bounds by simulation: how often they hold the truth, for few documents and many, whatever they are like.

Run with -s to see the table: the share of bounds that hold at a nominal 90%, low and high, and both at once (80%).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from continual.learn.bounds import bounds, student_t

TRUTH, CONFIDENCE = 0.1, 0.9
LEAST = 0.88
REPEATS = 1500
Arrays = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, int], Arrays]


def _lengths(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(50, 200, shape).astype(np.float64)


def _unequal(random: np.random.Generator, count: int) -> np.ndarray:
    """Log-normal lengths: of four documents one often holds most of the tokens."""
    return np.exp(random.normal(5, 1, count)).round() + 2


def independent(random: np.random.Generator, count: int) -> Arrays:
    tokens = _lengths(random, count)
    return random.normal(TRUTH, 0.2, count) * tokens, tokens


def correlated(random: np.random.Generator, count: int) -> Arrays:
    """Four pieces to a document, which differ little from each other."""
    tokens = _lengths(random, count, 4)
    each = TRUTH + random.normal(0, 0.2, (count, 1)) + random.normal(0, 0.07, (count, 4))
    return (each * tokens).sum(axis=1), tokens.sum(axis=1)


def heavy_tailed(random: np.random.Generator, count: int) -> Arrays:
    tokens = _lengths(random, count)
    return (TRUTH + 0.2 * random.standard_t(3, count)) * tokens, tokens


def unequal(random: np.random.Generator, count: int) -> Arrays:
    tokens = _unequal(random, count)
    return random.normal(TRUTH, 0.2, count) * tokens, tokens


def skewed(random: np.random.Generator, count: int) -> Arrays:
    """A few documents lose much: exponential, of skewness 2."""
    tokens = _lengths(random, count)
    return (TRUTH - 0.2 * (random.exponential(1, count) - 1)) * tokens, tokens


def coverage(draw: Draw, count: int) -> tuple[float, float, float]:
    random = np.random.Generator(np.random.PCG64([count, *draw.__name__.encode()]))
    found = [bounds(*draw(random, count), CONFIDENCE, resamples=200, seed=seed) for seed in range(REPEATS)]
    low, high = np.array(found).T
    return (
        float(np.mean(low <= TRUTH)),
        float(np.mean(high >= TRUTH)),
        float(np.mean((low <= TRUTH) & (high >= TRUTH))),
    )


@pytest.mark.parametrize("count", [4, 8, 16, 64])
@pytest.mark.parametrize("draw", [independent, correlated, heavy_tailed, unequal])
def test_each_bound_holds_as_often_as_it_says(draw: Draw, count: int) -> None:
    low, high, both = coverage(draw, count)
    print(f"{draw.__name__:22} {count:3} documents: low {low:.3f}, high {high:.3f}, both {both:.3f}")
    assert min(low, high) >= LEAST
    assert both >= 2 * LEAST - 1


@pytest.mark.parametrize(("count", "least"), [(4, 0.79), (16, 0.84), (64, 0.86)])
def test_where_a_few_documents_lose_most_the_bound_of_few_documents_holds_less_often(
    count: int, least: float
) -> None:
    """What four documents do not show, no bound can know: said in docs/continual.md."""
    low, high, both = coverage(skewed, count)
    print(f"{'skewed':22} {count:3} documents: low {low:.3f}, high {high:.3f}, both {both:.3f}")
    assert low >= least and high >= LEAST


def test_pieces_of_one_document_do_not_count_as_many() -> None:
    """Four documents of eight equal pieces each say no more than four documents."""
    random = np.random.default_rng(0)
    differences, tokens = independent(random, 4)
    whole = bounds(differences, tokens, CONFIDENCE, 1000, 0)
    torn = bounds(np.repeat(differences / 8, 8), np.repeat(tokens / 8, 8), CONFIDENCE, 1000, 0)
    assert whole[1] - whole[0] > 2.5 * (torn[1] - torn[0])


def test_a_document_that_holds_nearly_all_tokens_leaves_the_bounds_wide() -> None:
    tokens = np.array([5000.0, 20, 30, 25])
    low, high = bounds(tokens * [0.1, 0.9, 0.8, 0.7], tokens, CONFIDENCE, 1000, 0)
    assert high - low > 0.5


def test_equal_differences_leave_no_doubt_and_one_document_all() -> None:
    tokens = np.array([50.0, 70, 60, 90])
    assert bounds(0.1 * tokens, tokens, CONFIDENCE, 1000, 0) == pytest.approx((0.1, 0.1))
    assert bounds(tokens[:1], tokens[:1], CONFIDENCE, 1000, 0) == (-math.inf, math.inf)


@pytest.mark.parametrize("freedom", [1, 1.5, 3, 7.3, 63, 5000])
@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.99])
def test_the_quantiles_are_students(freedom: float, confidence: float) -> None:
    from scipy import stats

    assert student_t(confidence, freedom) == pytest.approx(stats.t.ppf(confidence, freedom), rel=3e-4)
