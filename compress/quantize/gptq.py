"""GPTQ (arXiv 2210.17323): INT4 weights chosen so that each layer's output stays, not each weight.

One pass of the calibration tokens through the model does all of it. Every linear layer is quantized at the moment
its input arrives, and that input was already computed by quantized layers: later ones repair what earlier ones lost.
The grid is MatMulNBits': blocks of 32 weights along the input, a scale each, codes 0 to 15 around 8; of
the layers that shall keep 8 bits, codes 0 to 255 around 128. Of a small model the output layer is a fifth of all
weights, and the one place whose errors no later layer mends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.mapped import computing_with
from everlearn.errors import Unsupported

BLOCK = 32
BITS = 4
CENTRE = 1 << BITS - 1
ROUNDED_AT_ONCE = 1 << 24
"""Weights; 64 MB of them in float32."""
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""
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


def round_to_nearest(weight: Tensor, bits: int = BITS) -> Quantized:
    """weight: (out, in), as onnxruntime's quantizer does it; some rows at a time, to bound memory.

    Where the width is no multiple of 32, zeros follow. Clipping to a smaller squared error of the weights made the
    model worse (SmolLM2, 8 layers: KL 0.074, not 0.067).
    """
    centre = 1 << bits - 1
    out, columns = weight.shape
    blocks = -(-columns // BLOCK)
    codes = torch.empty(out, blocks * BLOCK, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(out, blocks, device=weight.device)
    rows = max(1, ROUNDED_AT_ONCE // columns)
    for start in range(0, out, rows):
        part = slice(start, start + rows)
        filled = nn.functional.pad(weight[part].float(), (0, codes.shape[1] - columns))
        block = filled.view(-1, blocks, BLOCK)
        scales[part] = full_scales(block, centre)
        rounded = (block / scales[part][..., None]).round_().clamp_(-centre, centre - 1)
        codes[part] = rounded.add_(centre).view(-1, codes.shape[1])
    return Quantized(codes, scales, bits)


def gptq(weight: Tensor, hessian: Tensor) -> Quantized:
    """weight: (out, in). hessian: (in, in), the sum of x x' over the calibration tokens' inputs x."""
    return quantize_columns(weight, inverse_factor(hessian), hessian.diagonal())


def weighted_hessian(rows: Tensor) -> Tensor:
    """The Hessian (in, in) of rows (tokens, in), no token counting for much more than a typical one.

    A sentence's first token can have a million times the energy of the others (massive activations, arXiv
    2402.17762): alone it would decide everything. Weighting by token as in arXiv 2503.01820.
    """
    energy = rows.square().sum(-1)
    weights = 1 / (1 + energy / energy.median().clamp(min=1e-12))
    return (rows * weights[:, None]).T @ rows


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, U'U = H^-1: float32 (in, in)."""
    damped = hessian.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    del damped  # the largest things that are held at once: three matrices (in, in) of float64
    return torch.linalg.cholesky(inverse, upper=True).float()


def quantize_columns(weight: Tensor, factor: Tensor, importance: Tensor) -> Quantized:
    """Rounds one input column after the other, and moves each one's error onto the columns not yet rounded.

    weight: (out, in). factor: (in, in) of :func:`inverse_factor`. importance: (in,). Scales are found when a
    block's turn comes, from the weights as corrected so far; the columns after it are corrected once a block.
    """
    left = weight.float().T.contiguous()  # (in, out): a column of the weight is a row here
    columns, out = left.shape
    codes = torch.empty((columns, out), dtype=torch.uint8)
    scales = torch.empty((columns // BLOCK, out))
    for block, start in enumerate(range(0, columns, BLOCK)):
        stop = start + BLOCK
        part, within = left[start:stop], factor[start:stop, start:stop]
        scale = block_scales(part.T[:, None], importance[None, start:stop])[:, 0]
        errors = torch.empty_like(part)
        for at, pivot in enumerate(within.diagonal().tolist()):
            rounded = (part[at] / scale).round_().clamp_(-CENTRE, CENTRE - 1)
            codes[start + at] = rounded + CENTRE
            errors[at] = (part[at] - rounded * scale) / pivot
            part[at + 1 :].addr_(within[at, at + 1 :], errors[at], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        scales[block] = scale
    return Quantized(codes.T.contiguous(), scales.T.contiguous())


class SharedInput:
    """Query, key and value layers get the very same input: its Hessian is factored once."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None

    def of(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse factor (in, in) and the importance (in,) of inputs (batch, seq, in)."""
        if inputs is not self.inputs:
            hessian = weighted_hessian(inputs.flatten(0, -2).float())
            self.inputs, self.importance = inputs, hessian.diagonal().clone()
            self.factor = inverse_factor(hessian)
        return self.factor, self.importance


@torch.no_grad()
def quantize_model(
    model: Any,
    windows: Tensor,
    matrices: MutableMapping[str, Quantized],
    on_layer: OnLayer | None = None,
    *,
    bits: Mapping[str, int] | None = None,
) -> None:
    """Adds every linear layer of a transformers causal language model, quantized, to ``matrices`` by its name.

    Those that are there already, of an interrupted run, are taken as they are. The model stays as it is.
    windows: int64 (windows, seq). bits: of layers that shall not have 4, by name. Those of 8 are rounded to nearest, and
    so is an output layer that is the embedding too: an embedding has no inputs to be judged by. Raises Unsupported for
    a layer whose width is no multiple of 32.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names: dict[nn.Module, str] = dict(layers_in_blocks(model))
    count = len(names)
    rounded = {module for module, name in names.items() if (bits or {}).get(name, BITS) > BITS}
    if head.weight is embedding.weight:
        names[embedding] = names[head]
        rounded |= {head, embedding}
    shared = SharedInput()

    def weight_of(module: nn.Module, inputs: Tensor) -> Tensor:
        name, weight = names[module], module.weight
        assert isinstance(weight, Tensor)
        if name not in matrices:
            if module in rounded:
                matrices[name] = round_to_nearest(weight, (bits or {}).get(name, BITS))
            else:
                matrices[name] = quantize_columns(weight, *shared.of(inputs))
            if on_layer:
                on_layer(len(matrices), count)
        return matrices[name].weight()

    with computing_with((module for module in names if module is not head), weight_of):
        hidden = model.get_decoder()(input_ids=windows, use_cache=False).last_hidden_state
    if names[head] not in matrices:
        weight_of(head, hidden)  # (windows, seq, hidden); its own output is not needed


@torch.no_grad()
def round_model(
    model: Any,
    matrices: MutableMapping[str, Quantized],
    on_layer: OnLayer | None = None,
    *,
    bits: Mapping[str, int] | None = None,
) -> None:
    """As :func:`quantize_model`, all rounded to nearest."""
    layers = linear_layers(model)
    for module, name in layers.items():
        if name not in matrices:
            matrices[name] = round_to_nearest(module.weight, (bits or {}).get(name, BITS))
        if on_layer:
            on_layer(len(matrices), len(layers))


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
