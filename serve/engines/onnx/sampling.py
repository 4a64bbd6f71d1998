"""Logits to a token: bias, penalties, mask, temperature, top-k, min-p, top-p, and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 256

Logits = NDArray[np.float32]
"""One row: (vocab,)."""


@dataclass(frozen=True)
class SamplingOptions:
    """OpenAI's sampling parameters, with vLLM's top_k (0 = off) and min_p."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """None: no log-probabilities; 0: the chosen token's alone."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities under the model itself, before bias, penalties and temperature."""

    chosen: float
    top: list[tuple[int, float]]


class Sampler:
    """Chooses the tokens of one answer. Depends on nothing but its own logits and seed."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self.random = np.random.Generator(np.random.PCG64(options.seed))
        self.counts: dict[int, int] = {}
        self.biased = np.array(list(options.logit_bias), np.int64)
        self.bias = np.array(list(options.logit_bias.values()), np.float32)
        self.penalised = bool(options.presence_penalty or options.frequency_penalty)

    def sample(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> tuple[int, TokenLogprobs | None]:
        """The next token. `logits` (vocab,) may be overwritten; `allowed` (vocab,) masks a grammar."""
        original = logits.copy() if self.options.top_logprobs is not None else None
        self._adjust(logits)
        if allowed is not None:
            logits[~allowed] = -np.inf
        token = int(logits.argmax()) if self.options.temperature == 0 else self._draw(logits)
        if self.penalised:
            self.counts[token] = self.counts.get(token, 0) + 1
        if original is None:
            return token, None
        return token, log_probabilities(original, token, self.options.top_logprobs or 0)

    def _adjust(self, logits: Logits) -> None:
        if len(self.biased):
            logits[self.biased] += self.bias
        if self.penalised and self.counts:
            seen = np.fromiter(self.counts, np.int64)
            times = np.fromiter(self.counts.values(), np.float32)
            logits[seen] -= self.options.presence_penalty + self.options.frequency_penalty * times

    def _draw(self, logits: Logits) -> int:
        options = self.options
        logits -= logits.max()
        logits /= options.temperature
        weights = np.exp(logits, out=logits)  # relative to the best token's
        if options.min_p > 0:
            weights[weights < options.min_p] = 0
        if options.top_k > 0 or options.top_p < 1:
            tokens = nucleus(weights, options.top_k, options.top_p)
            return int(tokens[pick(weights[tokens], self.random.random())])
        return pick(weights, self.random.random())


def pick(weights: Logits, uniform: float) -> int:
    """Inverse of the cumulative distribution of `weights` (n,) at `uniform` in [0, 1).

    Sums of blocks first, then within one block: a running sum over a whole vocabulary costs five times more.
    """
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)), dtype=np.float64)
    target = uniform * blocks[-1]
    block = int(np.searchsorted(blocks, target, side="right"))
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    cumulative = np.cumsum(inside, dtype=np.float64)
    rest = target - (blocks[block - 1] if block else 0.0)
    index = int(np.searchsorted(cumulative, rest, side="right"))
    if index == len(inside):  # rounding took the target past the block's end
        index = int(np.flatnonzero(inside)[-1])
    return block * BLOCK + index


def nucleus(weights: Logits, top_k: int, top_p: float) -> NDArray[np.int64]:
    """Tokens kept by top-k, then top-p (Holtzman et al. 2020), best first.

    Sorting a whole vocabulary costs milliseconds, so first only tokens within 1/2000 of the best are sorted;
    the rest follows when these do not decide.
    """
    if top_p < 1:
        total = float(weights.sum(dtype=np.float64))
    for least in (5e-4, 0.0):
        tokens = np.flatnonzero(weights > least)
        if top_k and len(tokens) < top_k and least:
            continue
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        if top_k:
            tokens = tokens[:top_k]
            total = float(weights[tokens].sum(dtype=np.float64))
        if top_p >= 1:
            return tokens
        cumulative = np.cumsum(weights[tokens], dtype=np.float64)
        if cumulative[-1] >= top_p * total or not least:
            return tokens[: int(np.searchsorted(cumulative, top_p * total)) + 1]
    raise AssertionError("the second pass always returns")


def log_probabilities(logits: Logits, token: int, top: int) -> TokenLogprobs:
    """log softmax of `logits` (vocab,) at `token`, and the `top` largest, best first."""
    best = logits.max()
    normaliser = best + np.log(np.exp(logits - best).sum(dtype=np.float64))
    order: list[tuple[int, float]] = []
    if top:
        largest = np.argpartition(-logits, top)[:top]
        largest = largest[np.argsort(-logits[largest], kind="stable")]
        order = [(int(i), float(logits[i] - normaliser)) for i in largest]
    return TokenLogprobs(float(logits[token] - normaliser), order)
