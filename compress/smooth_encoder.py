"""What 8 bits cost an encoder, made less: each linear layer's input is rounded in the way that loses enough less.

onnxruntime's INT8 product rounds a batch of inputs with one scale, so a few large values cost all others their bits.
Where these keep to some channels, the channels are divided by a factor that their weights were multiplied with
(SmoothQuant, arXiv 2211.10438). Where they come and go with the token, the layer is computed with a scale for each
block of each token (MatMulNBits), which takes longer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.encoder import Encoder, whole_texts
from compress.listening import listening
from compress.sensitivity import in_int8

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of its largest value a channel hands to its weights: SmoothQuant's alpha."""
WORTH = 2.0
"""Smoothed where that makes the loss so many times less."""
BEARABLE = 0.002
"""The loss above which a layer is computed by blocks: of a token's output, the share of its square that is error."""
BLOCK = 128
"""Input channels that have one scale, where a layer is computed by blocks."""
STEPS = 127
"""A row's largest weight lies so many steps from 0, as onnxruntime reckons."""
ROWS = 128
"""Tokens of each batch of texts that losses are taken on."""
TINY = 1e-9


@dataclass
class Read:
    """A tensor that ``layers`` read: the least and the largest value of each channel, (in,), and some rows, (n, in)."""

    layers: list[str]
    low: Tensor
    high: Tensor
    rows: Tensor


class Smoothed(nn.Module):
    """``linear`` of ``inputs * factor``; factor: float32 (in,), which the weights were divided by."""

    def __init__(self, linear: nn.Linear, factor: Tensor) -> None:
        super().__init__()
        linear.weight.data /= factor
        self.linear = linear
        self.register_buffer("factor", factor)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in); returns (..., out)."""
        return self.linear(inputs * self.factor)


@torch.inference_mode()
def smooth(encoder: Encoder, texts: Sequence[Tensor]) -> tuple[dict[str, float], list[str]]:
    """Smooths ``encoder`` in place, which computes what it did; texts: batches, int64 (texts, seq) each.

    Returns the strength for each layer that was smoothed, and the layers that are to be computed by blocks.
    """
    smoothed: dict[str, float] = {}
    by_blocks: list[str] = []
    for read in reads(encoder, texts):
        linears = [encoder.body.get_submodule(name) for name in read.layers]
        weight = torch.cat([linear.weight for linear in linears])  # (out of all, in)
        wanted = read.rows @ weight.T
        factors = {strength: factor_of(read, weight, strength) for strength in STRENGTHS}
        losses = {strength: lost(read, weight, factor, wanted) for strength, factor in factors.items()}
        strength = min(losses, key=losses.__getitem__)
        plain = lost(read, weight, torch.ones_like(read.low), wanted)
        left = min(plain, losses[strength])
        if left > BEARABLE and loss(in_blocks(read.rows) @ in_blocks(weight).T, wanted) < left:
            by_blocks += read.layers
        elif losses[strength] * WORTH < plain:
            for name, linear in zip(read.layers, linears, strict=True):
                encoder.body.set_submodule(name, Smoothed(linear, factors[strength]))
                smoothed[name] = strength
    return smoothed, by_blocks


def reads(encoder: Encoder, texts: Sequence[Tensor]) -> list[Read]:
    """What linear layers read. Without those that are called more than once: their inputs are several tensors."""
    names = {one: name for name, one in encoder.body.named_modules() if isinstance(one, nn.Linear)}
    calls: list[tuple[nn.Linear, Tensor]] = []
    with listening(names, lambda linear, given: calls.append((linear, given))):
        encoder.embed(whole_texts(texts[0][:1]))
    times = Counter(linear for linear, _ in calls)
    together: defaultdict[Any, list[nn.Linear]] = defaultdict(list)
    for linear, given in calls:
        if times[linear] == 1:
            together[given.data_ptr(), given.shape, given.stride()].append(linear)
    groups = {linears[0]: [names[one] for one in linears] for linears in together.values()}
    found: dict[nn.Linear, Read] = {}

    def look(linear: nn.Linear, given: Tensor) -> None:
        tokens = given.flatten(0, -2)  # (tokens, in)
        low, high = tokens.amin(0), tokens.amax(0)
        rows = tokens[:: max(1, len(tokens) // ROWS)].clone()
        before = found.get(linear)
        if before:
            low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
            rows = torch.cat([before.rows, rows])
        found[linear] = Read(groups[linear], low, high, rows)

    with listening(groups, look):
        for some in texts:
            encoder.embed(whole_texts(some))
    return list(found.values())


def factor_of(read: Read, weight: Tensor, strength: float) -> Tensor:
    """What each channel is multiplied with: (in,); weight: (out, in)."""
    largest = torch.maximum(read.low.abs(), read.high.abs()).clamp(min=TINY)
    return weight.abs().amax(0).clamp(min=TINY) ** (1 - strength) / largest**strength


def lost(read: Read, weight: Tensor, factor: Tensor, wanted: Tensor) -> float:
    """:func:`loss` of the layers behind ``factor``, whose inputs have one scale."""
    span = (read.low * factor).min(), (read.high * factor).max()
    return loss(rounded_together(read.rows * factor, *span) @ in_int8(weight / factor, STEPS).T, wanted)


def loss(made: Tensor, wanted: Tensor) -> float:
    """The mean share of a token's output that is error, squared; (tokens, out) both. No token counts for more."""
    return float(((made - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=TINY)).mean())


def rounded_together(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As DynamicQuantizeLinear rounds: to 256 steps from the least to the largest value, 0 one of them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=TINY)
    zero = (-low / scale).round()
    return (((rows / scale).round() + zero).clamp(0, 255) - zero) * scale


def in_blocks(values: Tensor) -> Tensor:
    """Each :data:`BLOCK` of each row to 8 bits with a scale of its own."""
    width = values.shape[-1]
    padded = nn.functional.pad(values, (0, -width % BLOCK))
    return in_int8(padded.unflatten(-1, (-1, BLOCK)), STEPS).flatten(-2)[..., :width]
