"""Logits to a token: bias, penalties, mask, temperature, top-k, min-p, top-p, and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve.engines.onnx.decoding.softmax import BLOCK, Shares

MAX_DRAWS = 12
"""Draws before the nucleus is sorted out: with top_p 0.5, one answer token in 4,000 needs it."""

SMALLEST = np.finfo(np.float32).smallest_subnormal

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
        self.original: Logits | None = None
        """What the model said, where log-probabilities are wanted."""

    @property
    def draws(self) -> bool:
        """Whether it needs the tokens' shares."""
        return self.options.temperature > 0

    def adjust(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> None:
        """Bias, penalties and a grammar's mask `allowed` (vocab,), written over `logits` (vocab,)."""
        self.original = logits.copy() if self.options.top_logprobs is not None else None
        if len(self.biased):
            logits[self.biased] += self.bias
        if self.penalised and self.counts:
            seen = np.fromiter(self.counts, np.int64)
            times = np.fromiter(self.counts.values(), np.float32)
            logits[seen] -= self.options.presence_penalty + self.options.frequency_penalty * times
        if allowed is not None:
            logits[~allowed] = -np.inf

    def choose(self, logits: Logits, shares: Shares | None) -> tuple[int, TokenLogprobs | None]:
        """The next token, of adjusted `logits` (vocab,) or, where it `draws`, of their `shares`."""
        token = int(logits.argmax()) if shares is None else self._draw(shares)
        if self.penalised:
            self.counts[token] = self.counts.get(token, 0) + 1
        if self.original is None:
            return token, None
        return token, log_probabilities(self.original, token, self.options.top_logprobs or 0)

    def _draw(self, shares: Shares) -> int:
        options = self.options
        if options.min_p > 0:
            shares = shares.above(options.min_p * shares.best)
        if options.top_k > 0:
            tokens, weights = best(shares, options.top_k)
            if options.top_p < 1:
                kept = heaviest(weights, options.top_p * float(weights.sum(dtype=np.float64)))
                tokens, weights = tokens[kept], weights[kept]
            return int(tokens[inverse(weights, self.random.random())])
        if options.top_p < 1:
            return self._draw_nucleus(shares)
        return pick(shares, shares.sums.cumsum(dtype=np.float64), self.random.random())

    def _draw_nucleus(self, shares: Shares) -> int:
        """Nucleus sampling (Holtzman et al. 2020) without sorting a vocabulary, which takes milliseconds.

        A draw from all tokens that is thrown away outside the nucleus is a draw from the nucleus, and whether a
        token is inside needs only the sum of what is heavier. Sorts after all when chance insists.
        """
        cumulative = shares.sums.cumsum(dtype=np.float64)
        whole = float(cumulative[-1])
        wanted = self.options.top_p * whole
        weights = shares.each.reshape(-1)
        for _ in range(MAX_DRAWS):
            token = pick(shares, cumulative, self.random.random())
            share = float(weights[token])
            if whole - share < wanted or shares.heavier(share, wanted) < wanted:
                return token
        tokens = np.flatnonzero(weights)
        tokens = tokens[heaviest(weights[tokens], wanted)]
        return int(tokens[inverse(weights[tokens], self.random.random())])


def pick(shares: Shares, cumulative: NDArray[np.float64], uniform: float) -> int:
    """Inverse of the distribution at `uniform` in [0, 1), by the blocks' `cumulative` sums and then within a block."""
    target = uniform * cumulative[-1]
    block = int(cumulative.searchsorted(target, side="right"))
    before = cumulative[block - 1] if block else 0.0
    return block * BLOCK + within(shares.each[block], target - before)


def inverse(weights: NDArray[np.float32], uniform: float) -> int:
    """Inverse of the cumulative distribution of `weights` (n,) at `uniform` in [0, 1)."""
    return within(weights, uniform * float(weights.sum(dtype=np.float64)))


def within(weights: NDArray[np.float32], target: float) -> int:
    """Where the running sum of `weights` (n,) goes beyond `target`."""
    index = int(weights.cumsum(dtype=np.float64).searchsorted(target, side="right"))
    if index == len(weights):  # rounding took the target past the end
        index = int(np.flatnonzero(weights)[-1])
    return index


def best(shares: Shares, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `count` tokens with the largest shares, those of none left out, and their shares; in no order."""
    blocks = np.arange(len(shares.largest))
    least = SMALLEST
    if count < len(blocks):  # so many tokens are the largest of their blocks: no other is among the best
        blocks = np.argpartition(-shares.largest, count - 1)[:count]
        least = max(least, shares.largest[blocks].min())
    weights = shares.each[blocks].reshape(-1)
    places = (weights >= least).nonzero()[0]
    if len(places) > count:
        places = places[np.argpartition(-weights[places], count - 1)[:count]]
    return blocks[places // BLOCK] * BLOCK + places % BLOCK, weights[places]


def heaviest(weights: NDArray[np.float32], wanted: float) -> NDArray[np.int64]:
    """Where the fewest of `weights` (n,) are whose sum is `wanted`, the heaviest first."""
    order = np.argsort(-weights, kind="stable")
    enough = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), wanted)) + 1
    return order[:enough]


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
