"""Logits to a token: bias, penalties, mask, temperature, top-k, min-p, top-p, and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Tokens summed together while drawing."""

MAX_DRAWS = 12
"""Draws before the nucleus is sorted out: with top_p 0.5, one answer token in 4,000 needs it."""

LIKELY = 5e-4
"""Share of the best token's weight above which, for most texts, there are no more than a few hundred tokens."""

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
        logits *= 1 / options.temperature
        weights = np.exp(logits)  # relative to the best token's
        if options.min_p > 0:
            weights[weights < options.min_p] = 0
        if options.top_k > 0:
            tokens = best(weights, options.top_k)
            if options.top_p < 1:
                tokens = heaviest(
                    tokens, weights, options.top_p * float(weights[tokens].sum(dtype=np.float64))
                )
        elif options.top_p < 1:
            return self._draw_nucleus(weights)
        else:
            return pick(weights, self.random.random())
        return int(tokens[pick(weights[tokens], self.random.random())])

    def _draw_nucleus(self, weights: Logits) -> int:
        """Nucleus sampling (Holtzman et al. 2020) without sorting a vocabulary, which takes milliseconds.

        A draw from all tokens that is thrown away outside the nucleus is a draw from the nucleus, and whether a
        token is inside needs only the sum of what is heavier. Sorts after all when chance insists.
        """
        wanted = self.options.top_p * float(weights.sum(dtype=np.float64))
        for _ in range(MAX_DRAWS):
            token = pick(weights, self.random.random())
            if weights[weights > weights[token]].sum(dtype=np.float64) < wanted:
                return token
        tokens = heaviest(np.flatnonzero(weights), weights, wanted)
        return int(tokens[pick(weights[tokens], self.random.random())])


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


def best(weights: Logits, count: int) -> NDArray[np.int64]:
    """The `count` tokens of most weight, in no order."""
    tokens = np.flatnonzero(weights > LIKELY)
    if len(tokens) < count:
        tokens = np.flatnonzero(weights)
    if len(tokens) > count:
        tokens = tokens[np.argpartition(-weights[tokens], count - 1)[:count]]
    return tokens


def heaviest(tokens: NDArray[np.int64], weights: Logits, wanted: float) -> NDArray[np.int64]:
    """The fewest of `tokens` whose weights sum to `wanted`."""
    tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
    enough = int(np.searchsorted(np.cumsum(weights[tokens], dtype=np.float64), wanted)) + 1
    return tokens[:enough]


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
