"""Lower the cost of 8 bits in an encoder: each linear layer's input is rounded in the way that loses little enough.

onnxruntime's INT8 product rounds a batch of inputs with one scale, so a few large values cost all others their bits.
Where these keep to some channels, the channels are divided by a factor that their weights were multiplied with
(SmoothQuant, arXiv 2211.10438). Where they come and go with the token, each token is divided by its largest value
before the product and multiplied with it after.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.quantize.capture import capture_inputs
from compress.quantize.sensitivity import in_int8

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of its largest value a channel hands to its weights: SmoothQuant's alpha."""
WORTH = 2.0
"""Smoothed where that makes the loss so many times less."""
BEARABLE = 0.002
"""The loss above which each token gets a scale of its own: of its output, the share of the square that is error."""
STEPS = 64
"""A row's largest weight lies so many steps from 0: 7 bits, as :func:`compress.targets.onnx_encoder.quantize` rounds."""
ROWS = 128
"""Tokens of each batch of texts that losses are taken on."""
TINY = 1e-9


Batch = tuple[Tensor, ...]
"""An encoder's inputs, in order: (rows, …) each."""


class Smoothable(Protocol):
    """What :class:`compress.sentence_encoder.Encoder` and others like it are. ``rounded``: how the names of the layers in
    ``body`` begin that may keep fewer bits."""

    body: Any
    rounded: str

    def __call__(self, *batch: Tensor) -> Any: ...


@dataclass
class Read:
    """A tensor that ``layers`` read: the least and the largest value of each channel, (in,), and some rows, (n, in)."""

    layers: list[str]
    low: Tensor
    high: Tensor
    rows: Tensor


class ByToken(nn.Module):
    """``linear`` with each token divided by its largest value, and the product multiplied with it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in); returns (..., out)."""
        largest = inputs.abs().amax(-1, keepdim=True).clamp(min=TINY)
        outputs = nn.functional.linear(inputs / largest, self.weight) * largest
        return outputs if self.bias is None else outputs + self.bias


class Smoothed(nn.Module):
    """``layer`` of ``inputs * factor``; factor: float32 (in,), which the weights were divided by."""

    def __init__(self, layer: nn.Linear | ByToken, factor: Tensor) -> None:
        super().__init__()
        layer.weight.data /= factor
        self.layer = layer
        self.register_buffer("factor", factor)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in); returns (..., out)."""
        return self.layer(inputs * self.factor)


@torch.inference_mode()
def smooth(encoder: Smoothable, batches: Sequence[Batch]) -> tuple[dict[str, float], list[str]]:
    """Smooths ``encoder`` in place, which computes what it did; batches: of its inputs, without padding.

    Returns the strength for each layer that was smoothed, and the layers in which each token has its own scale.
    """
    smoothed: dict[str, float] = {}
    by_token: list[str] = []
    for read in reads(encoder, batches):
        linears = [encoder.body.get_submodule(name) for name in read.layers]
        weight = torch.cat([linear.weight for linear in linears])  # (out of all, in)
        strength, left = best_strength(read, weight, by_token=False)
        if left > BEARABLE:
            other, less = best_strength(read, weight, by_token=True)
            if less < left:
                strength = other
                by_token += read.layers
                linears = [ByToken(linear) for linear in linears]
        for name, layer in zip(read.layers, linears, strict=True):
            if strength is not None:
                smoothed[name] = strength
                layer = Smoothed(layer, factor_of(read, weight, strength))
            encoder.body.set_submodule(name, layer)
    return smoothed, by_token


def best_strength(read: Read, weight: Tensor, *, by_token: bool) -> tuple[float | None, float]:
    """The strength that loses least, None where it is not :data:`WORTH` its product, and the loss with it."""
    plain = lost(read, weight, torch.ones_like(read.low), by_token)
    losses = {one: lost(read, weight, factor_of(read, weight, one), by_token) for one in STRENGTHS}
    strength = min(losses, key=losses.__getitem__)
    return (strength, losses[strength]) if losses[strength] * WORTH < plain else (None, plain)


def reads(encoder: Smoothable, batches: Sequence[Batch]) -> list[Read]:
    """What linear layers read. Without those that are called more than once: their inputs are several tensors."""
    names = {
        one: name
        for name, one in encoder.body.named_modules()
        if isinstance(one, nn.Linear) and name.startswith(encoder.rounded)
    }
    calls: list[tuple[nn.Linear, Tensor]] = []
    with capture_inputs(names, lambda linear, given: calls.append((linear, given))):
        encoder(*(one[:1] for one in batches[0]))
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

    with capture_inputs(groups, look):
        for batch in batches:
            encoder(*batch)
    return list(found.values())


def factor_of(read: Read, weight: Tensor, strength: float) -> Tensor:
    """What each channel is multiplied with: (in,); weight: (out, in)."""
    largest = torch.maximum(read.low.abs(), read.high.abs()).clamp(min=TINY)
    return weight.abs().amax(0).clamp(min=TINY) ** (1 - strength) / largest**strength


def lost(read: Read, weight: Tensor, factor: Tensor, by_token: bool) -> float:
    """What rounding costs the layers behind ``factor``: the mean share of a token's output that is error, squared.

    No token counts for more than another. Their inputs have one scale, for the whole range of what was read or, with
    ``by_token``, for tokens that were divided by their largest value.
    """
    rows, low, high = read.rows * factor, (read.low * factor).min(), (read.high * factor).max()
    if by_token:
        rows = rows / rows.abs().amax(-1, keepdim=True).clamp(min=TINY)
        low, high = rows.min(), rows.max()
    weight = weight / factor
    wanted = rows @ weight.T
    error = rounded_together(rows, low, high) @ in_int8(weight, STEPS).T - wanted
    return float((error.square().sum(-1) / wanted.square().sum(-1).clamp(min=TINY)).mean())


def rounded_together(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As DynamicQuantizeLinear rounds: to 256 steps from the least to the largest value, 0 one of them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=TINY)
    zero = (-low / scale).round()
    return (((rows / scale).round() + zero).clamp(0, 255) - zero) * scale
