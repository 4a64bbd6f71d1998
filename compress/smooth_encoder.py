"""What 8 bits cost an encoder, made less: each linear layer's input is rounded in the way that loses enough less.

onnxruntime's INT8 product rounds a batch of inputs with one scale, so a few large values cost all others their bits.
Where these keep to some channels, the channels are divided by a factor that their weights were multiplied with
(SmoothQuant, arXiv 2211.10438). Where they come and go with the token, the layer is computed with a scale for each
block of each token (MatMulNBits), which takes longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.encoder import Encoder, whole_texts

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of its largest value a channel hands to its weights: SmoothQuant's alpha."""
WORTH = 2.0
"""Smoothed where that makes the loss so many times less."""
BEARABLE = 0.002
"""The loss above which a layer is computed by blocks: of a token's output, the share of its square that is error."""
BLOCK = 128
"""Input channels that have one scale, where a layer is computed by blocks."""
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

        def lost(
            factor: Tensor, read: Read = read, weight: Tensor = weight, wanted: Tensor = wanted
        ) -> float:
            span = (read.low * factor).min(), (read.high * factor).max()
            return loss(rounded_together(read.rows * factor, *span) @ rounded(weight / factor).T, wanted)

        factors = {strength: factor_of(read, weight, strength) for strength in STRENGTHS}
        losses = {strength: lost(factor) for strength, factor in factors.items()}
        strength = min(losses, key=losses.__getitem__)
        plain = lost(torch.ones_like(read.low))
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
    calls: list[tuple[str, Tensor]] = []
    with listening(encoder, lambda name, given: calls.append((name, given))):
        encoder.embed(whole_texts(texts[0][:1]))
    once = [one for one in calls if sum(name == one[0] for name, _ in calls) == 1]
    together: defaultdict[Any, list[str]] = defaultdict(list)
    for name, given in once:
        together[given.data_ptr(), given.shape, given.stride()].append(name)
    groups = {layers[0]: layers for layers in together.values()}
    found: dict[str, Read] = {}

    def look(name: str, given: Tensor) -> None:
        if name not in groups:
            return
        tokens = given.flatten(0, -2)  # (tokens, in)
        low, high = tokens.amin(0), tokens.amax(0)
        rows = tokens[:: max(1, len(tokens) // ROWS)].clone()
        before = found.get(name)
        if before:
            low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
            rows = torch.cat([before.rows, rows])
        found[name] = Read(groups[name], low, high, rows)

    with listening(encoder, look):
        for some in texts:
            encoder.embed(whole_texts(some))
    return list(found.values())


@contextmanager
def listening(encoder: Encoder, heard: Callable[[str, Tensor], None]) -> Iterator[None]:
    """``heard`` gets each linear layer's name and input while the encoder computes."""
    hooks = [
        module.register_forward_pre_hook(lambda _module, given, name=name: heard(name, given[0]))
        for name, module in encoder.body.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def factor_of(read: Read, weight: Tensor, strength: float) -> Tensor:
    """What each channel is multiplied with: (in,); weight: (out, in)."""
    largest = torch.maximum(read.low.abs(), read.high.abs()).clamp(min=TINY)
    return weight.abs().amax(0).clamp(min=TINY) ** (1 - strength) / largest**strength


def loss(made: Tensor, wanted: Tensor) -> float:
    """The mean share of a token's output that is error, squared; (tokens, out) both. No token counts for more."""
    return float(((made - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=TINY)).mean())


def rounded_together(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As DynamicQuantizeLinear rounds: to 256 steps from the least to the largest value, 0 one of them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=TINY)
    zero = (-low / scale).round()
    return (((rows / scale).round() + zero).clamp(0, 255) - zero) * scale


def rounded(values: Tensor) -> Tensor:
    """Each row to 8 bits with a scale of its own."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=TINY) / 127
    return (values / scale).round() * scale


def in_blocks(values: Tensor) -> Tensor:
    """Each :data:`BLOCK` of each row to 8 bits with a scale of its own."""
    width = values.shape[-1]
    padded = nn.functional.pad(values, (0, -width % BLOCK))
    return rounded(padded.unflatten(-1, (-1, BLOCK))).flatten(-2)[..., :width]
