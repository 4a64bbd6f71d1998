"""Logits to a token: bias, penalties, mask, temperature, top-k, min-p, top-p, and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Tokens summed together while drawing."""

BINS, BINS_PER_NAT = 512, 16
"""Bins of like logits, from the best down to 32 nats below; the last bin holds the rest."""

LIKELY, FEW = 5e-4, 2048
"""Share of the best token's weight above which, for most texts, there are no more than a few tokens."""

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
        uniform = self.random.random()
        if options.top_k > 0:
            tokens = best(weights, options.top_k)
            if options.top_p < 1:
                tokens = heaviest(
                    tokens, weights, options.top_p * float(weights[tokens].sum(dtype=np.float64))
                )
        elif options.top_p < 1:
            tokens = nucleus(logits, weights, options.top_p)
        else:
            return pick(weights, uniform)
        return int(tokens[pick(weights[tokens], uniform)])


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


def nucleus(logits: Logits, weights: Logits, top_p: float) -> NDArray[np.int64]:
    """The smallest set of tokens that holds `top_p` of the sum of `weights` (Holtzman et al. 2020).

    `weights` (vocab,) are exp(`logits`), the largest 1. Sorting a vocabulary takes milliseconds. So the likely
    tokens are sorted alone where they suffice; else tokens go into bins of like logits, whose sums tell in which
    bin the set ends, and only that bin is sorted.
    """
    wanted = top_p * float(weights.sum(dtype=np.float64))
    likely = np.flatnonzero(weights > LIKELY)
    if len(likely) <= FEW and weights[likely].sum(dtype=np.float64) >= wanted:
        return heaviest(likely, weights, wanted)
    bins = np.minimum(logits * -BINS_PER_NAT, BINS - 1).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, weights=weights, minlength=BINS))
    last = min(int(np.searchsorted(sums, wanted)), BINS - 1)
    inside = np.flatnonzero(bins < last)
    missing = wanted - (sums[last - 1] if last else 0.0)
    return np.concatenate((inside, heaviest(np.flatnonzero(bins == last), weights, missing)))


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
