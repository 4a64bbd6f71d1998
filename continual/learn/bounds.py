"""Confidence bounds of a mean difference per token, from whole documents; conservative where there are few.

A domain's mean is a ratio, the sum of the documents' differences over the sum of their tokens. Of each bound the wider
of two is taken. One is the jackknife over documents (Quenouille 1956; for clusters MacKinnon & Webb 2022, CV3) with
Student's t, whose degrees of freedom count documents by their weight (Satterthwaite 1946): where one document holds
most of the tokens, there is little to go by. The other is the studentized bootstrap over documents (Efron & Tibshirani
1993, chapter 12), which sees that the differences are skewed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bounds(
    differences: Array, tokens: Array, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """One-sided bounds (low, high) of ``differences.sum() / tokens.sum()``, each with ``confidence``.

    differences: float64 (documents,), sums over each document in nats. tokens: float64 (documents,), above zero.
    Both are infinite where there are fewer than two documents, or a difference is no number.
    """
    count = len(tokens)
    if count < 2 or not np.isfinite(differences).all():
        return -math.inf, math.inf
    mean = differences.sum() / tokens.sum()
    below, above = _bootstrap_t(differences, tokens, confidence, resamples, seed)
    reach = _jackknife_t(differences, tokens, confidence)
    return float(min(mean - reach, mean - below)), float(max(mean + reach, mean + above))


def _jackknife_t(differences: Array, tokens: Array, confidence: float) -> float:
    """How far the bound lies from the mean, to either side."""
    count, total = len(tokens), tokens.sum()
    without = (differences.sum() - differences) / (total - tokens)  # (documents,)
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    effective = float(total**2 / (tokens**2).sum())
    return student_t(confidence, max(effective - 1, 1.0)) * error


def _bootstrap_t(
    differences: Array, tokens: Array, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """How far the bounds lie below and above the mean."""
    count, total = len(tokens), tokens.sum()
    rest = differences - differences.sum() / total * tokens  # (documents,), of sum zero
    error = math.sqrt(float((rest**2).sum()) * count / (count - 1)) / total
    if not error:
        return 0.0, 0.0
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    totals = drawn @ tokens  # (resamples,)
    means = drawn @ rest / totals
    squares = drawn @ rest**2 - 2 * means * (drawn @ (rest * tokens)) + means**2 * (drawn @ tokens**2)
    errors = np.sqrt(np.maximum(squares, 0) * count / (count - 1)) / totals
    studentized = means / np.maximum(errors, error * 1e-3)  # one document drawn again and again has none
    low, high = np.quantile(studentized, [1 - confidence, confidence])
    return float(high) * error, float(-low) * error


def student_t(confidence: float, freedom: float) -> float:
    """The quantile of Student's t, for any degrees of freedom from 1 and a confidence above a half."""
    step = np.linspace(0, 1, 2001)
    angles = math.pi / 2 * step**2 * (3 - 2 * step)  # t = sqrt(freedom) tan(angle): the tail becomes finite
    density = np.abs(np.cos(angles)) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angles))])
    angle = np.interp((confidence - 0.5) * 2 * cumulative[-1], cumulative, angles)
    return math.sqrt(freedom) * math.tan(float(angle))
