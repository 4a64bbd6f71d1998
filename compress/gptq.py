"""GPTQ (arXiv 2210.17323): INT4 weights chosen so that each layer's output stays, not each weight.

One pass of the calibration tokens through the model does all of it. Every linear layer is quantized at the moment
its input arrives, and that input was already computed by quantized layers: later ones repair what earlier ones lost.
The grid is MatMulNBits': blocks of 32 weights along the input, a scale each, codes 0 to 15 around 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.errors import Unsupported

BLOCK = 32
CENTRE = 8
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""
# A scale is tried at these multiples of the one that puts a block's largest weight at code 0; a negative one puts
# it near code 15. Narrower clips the largest weight and is finer for the others.
STRETCHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, -1.15, -1.1, -1.05, -1.0, -0.95, -0.9, -0.85)

OnLayer = Callable[[int, int], None]
"""Called after each linear layer with (done, in all)."""


@dataclass(frozen=True)
class Int4:
    """A quantized matrix. codes: uint8 (out, in), 0 to 15; scales: float32 (out, in / 32)."""

    codes: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """What the codes stand for: float32 (out, in)."""
        out, columns = self.codes.shape
        blocks = self.codes.view(out, columns // BLOCK, BLOCK).float() - CENTRE
        return (blocks * self.scales[..., None]).view(out, columns)


def block_scales(blocks: Tensor, importance: Tensor) -> Tensor:
    """The scale of each block that rounds it with the least squared error.

    blocks: (out, blocks, 32). importance: (blocks, 32), how much an error at each input counts. Returns (out, blocks).
    """
    full = full_scales(blocks)[..., None]
    best = best_error = None
    for stretch in STRETCHES:
        scales = full * stretch
        error = ((blocks / scales).round_().clamp_(-CENTRE, CENTRE - 1) * scales).sub_(blocks).square_()
        error = error.mul_(importance).sum(-1, keepdim=True)
        if best is None or best_error is None:
            best, best_error = scales, error
        else:
            best = torch.where(error < best_error, scales, best)
            best_error = torch.minimum(error, best_error)
    assert best is not None
    return best[..., 0]


def full_scales(blocks: Tensor) -> Tensor:
    """The scale of each block (…, 32) that puts its largest weight at code 0, so that none is clipped."""
    largest = blocks.abs().argmax(-1, keepdim=True)
    scales = blocks.gather(-1, largest)[..., 0] / -CENTRE
    return torch.where(scales == 0, torch.full_like(scales, 1e-8), scales)


def round_to_nearest(weight: Tensor) -> Int4:
    """weight: (out, in), as the builder does it.

    Clipping to a smaller squared error of the weights made the model worse (SmolLM2, 8 layers: KL 0.074, not 0.067).
    """
    out, columns = weight.shape
    blocks = weight.float().view(out, columns // BLOCK, BLOCK)
    scales = full_scales(blocks)
    codes = (blocks / scales[..., None]).round_().clamp_(-CENTRE, CENTRE - 1) + CENTRE
    return Int4(codes.to(torch.uint8).view(out, columns), scales)


def gptq(weight: Tensor, hessian: Tensor) -> Int4:
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
    mean = damped.diagonal().mean().clamp(min=1e-12)
    damped = damped + DAMPING * mean * torch.eye(len(damped), dtype=damped.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def quantize_columns(weight: Tensor, factor: Tensor, importance: Tensor) -> Int4:
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
    return Int4(codes.T.contiguous(), scales.T.contiguous())


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
def quantize_model(model: Any, windows: Tensor, on_layer: OnLayer | None = None) -> dict[str, Int4]:
    """Quantizes every linear layer of a transformers causal language model in place; returns them by name.

    windows: int64 (windows, seq). Where the output layer is the embedding too, it is rounded to nearest: an
    embedding has no inputs to be judged by. Raises Unsupported for a layer whose width is no multiple of 32.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not (tied and module is head)
    }
    refuse_odd_widths(layers)
    matrices: dict[str, Int4] = {}
    shared = SharedInput()

    def quantize(linear: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        if linear not in layers or layers[linear] in matrices:
            return
        factor, importance = shared.of(inputs[0])
        matrix = quantize_columns(linear.weight, factor, importance)
        linear.weight.copy_(matrix.weight())
        matrices[layers[linear]] = matrix
        if on_layer:
            on_layer(len(matrices), len(layers))

    if tied:
        name = next(name for name, module in model.named_modules() if module is head)
        matrices[name] = round_to_nearest(head.weight)
        head.weight.copy_(matrices[name].weight())
    hooks = [linear.register_forward_pre_hook(quantize) for linear in layers]
    try:
        hidden = model.get_decoder()(input_ids=windows, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    quantize(head, (hidden,))  # (windows, seq, hidden); its own output is not needed
    return matrices


def refuse_odd_widths(layers: dict[nn.Linear, str]) -> None:
    """Raises Unsupported naming the layer that does not divide into blocks."""
    for linear, name in layers.items():
        if linear.in_features % BLOCK:
            raise Unsupported(
                f"{name} has {linear.in_features} inputs, no multiple of {BLOCK}; weights: rtn builds it"
            )
