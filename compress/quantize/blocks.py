"""Matrices of INT4 or INT8 in blocks of 32, as onnxruntime's MatMulNBits multiplies them, and which layers become such.

Each block of 32 weights along the input has a scale of float16's values; codes are 0 to 15 around 8, or 0 to 255 around
128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.errors import Unsupported

BLOCK = 32
BITS = 4
CENTRE = 1 << BITS - 1
ROUNDED_AT_ONCE = 1 << 24
"""Weights; 64 MB of them in float32."""
# A scale is tried at these multiples of the one that puts a block's largest weight at code 0; a negative one puts
# it near code 15. Narrower clips the largest weight and is finer for the others.
STRETCHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, -1.15, -1.1, -1.05, -1.0, -0.95, -0.9, -0.85)

OnLayer = Callable[[int, int], None]
"""Called after each linear layer with (done, in all)."""


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix. codes: uint8 (out, in), below 2^bits; scales: float32 (out, in / 32), of float16's values."""

    codes: Tensor
    scales: Tensor
    bits: int = BITS

    def weight(self) -> Tensor:
        """What the codes stand for: float32 (out, in)."""
        blocks = self.codes.float().view(*self.scales.shape, BLOCK)
        return blocks.sub_(1 << self.bits - 1).mul_(self.scales[..., None]).view(self.codes.shape)


def block_scales(blocks: Tensor, importance: Tensor) -> Tensor:
    """The scale of each block that rounds it with the least squared error.

    blocks: (out, blocks, 32). importance: (blocks, 32), how much an error at each input counts. Returns (out, blocks).
    """
    full = full_scales(blocks)[..., None]
    best = best_error = None
    for stretch in STRETCHES:
        scales = as_float16(full * stretch)
        error = ((blocks / scales).round_().clamp_(-CENTRE, CENTRE - 1) * scales).sub_(blocks).square_()
        error = error.mul_(importance).sum(-1, keepdim=True)
        if best is None or best_error is None:
            best, best_error = scales, error
        else:
            best = torch.where(error < best_error, scales, best)
            best_error = torch.minimum(error, best_error)
    assert best is not None
    return best[..., 0]


def full_scales(blocks: Tensor, centre: int = CENTRE) -> Tensor:
    """The scale of each block (…, 32) that puts its largest weight at code 0, so that none is clipped."""
    largest = blocks.abs().argmax(-1, keepdim=True)
    scales = as_float16(blocks.gather(-1, largest)[..., 0] / -centre)
    return torch.where(scales == 0, torch.full_like(scales, 1e-8), scales)


def as_float16(scales: Tensor) -> Tensor:
    """Rounded as ``compress.targets.quantized_graph`` writes them; those below float16's normal numbers stay, so that none is 0."""
    half = scales.half().float()
    return torch.where(half.abs() >= torch.finfo(torch.float16).smallest_normal, half, scales)


def round_to_nearest(weight: Tensor, bits: int = BITS, scales: Tensor | None = None) -> Quantized:
    """weight: (out, in), as onnxruntime's quantizer does it; some rows at a time, to bound memory.

    scales: float32 (out, in / 32) to round to, else those that clip no weight. Where the width is no multiple of 32, zeros follow. Clipping to a smaller squared error of the weights made the
    model worse (SmolLM2, 8 layers: KL 0.074, not 0.067).
    """
    centre = 1 << bits - 1
    out, columns = weight.shape
    blocks = -(-columns // BLOCK)
    codes = torch.empty(out, blocks * BLOCK, dtype=torch.uint8, device=weight.device)
    kept, scales = scales, torch.empty(out, blocks, device=weight.device)
    rows = max(1, ROUNDED_AT_ONCE // columns)
    for start in range(0, out, rows):
        part = slice(start, start + rows)
        filled = nn.functional.pad(weight[part].float(), (0, codes.shape[1] - columns))
        block = filled.view(-1, blocks, BLOCK)
        scales[part] = full_scales(block, centre) if kept is None else kept[part]
        rounded = (block / scales[part][..., None]).round_().clamp_(-centre, centre - 1)
        codes[part] = rounded.add_(centre).view(-1, codes.shape[1])
    return Quantized(codes, scales, bits)


def linear_layers(model: Any) -> dict[nn.Linear, str]:
    """Every linear layer and its name."""
    return {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def layers_in_blocks(model: Any) -> dict[nn.Linear, str]:
    """Every linear layer and its name. Raises Unsupported for one whose width is no multiple of 32."""
    found = linear_layers(model)
    refuse_odd_widths(found, BLOCK, "weights: rtn builds it")
    return found


def refuse_odd_widths(layers: dict[nn.Linear, str], block: int, instead: str) -> None:
    """Raises Unsupported naming the layer that does not divide into blocks, and what to do ``instead``."""
    for linear, name in layers.items():
        if linear.in_features % block:
            raise Unsupported(f"{name} has {linear.in_features} inputs, no multiple of {block}; {instead}")
