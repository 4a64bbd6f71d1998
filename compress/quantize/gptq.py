"""GPTQ (arXiv 2210.17323): INT4 weights chosen so that each layer's output stays, not each weight.

One pass of the calibration tokens through the model does all of it. Every linear layer is quantized at the moment
its input arrives, and that input was already computed by quantized layers: later ones repair what earlier ones lost.
The grid is MatMulNBits': blocks of 32 weights along the input, a scale each, codes 0 to 15 around 8; of
the layers that shall keep 8 bits, codes 0 to 255 around 128. Of a small model the output layer is a fifth of all
weights, and the one place whose errors no later layer mends.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.blocks import (
    BITS,
    BLOCK,
    CENTRE,
    OnLayer,
    Quantized,
    block_scales,
    layers_in_blocks,
    round_to_nearest,
)
from compress.quantize.mapped import computing_with

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""


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


def quantize_columns(
    weight: Tensor, factor: Tensor, importance: Tensor, kept: Tensor | None = None
) -> Quantized:
    """Rounds one input column after the other, and moves each one's error onto the columns not yet rounded.

    weight: (out, in). factor: (in, in) of :func:`inverse_factor`. importance: (in,). kept: scales (out, in / 32)
    to round to; else they are found when a block's turn comes, from the weights as corrected so far. The columns after
    it are corrected once a block.
    """
    left = weight.float().T.contiguous()  # (in, out): a column of the weight is a row here
    columns, out = left.shape
    codes = torch.empty((columns, out), dtype=torch.uint8)
    scales = torch.empty((columns // BLOCK, out))
    for block, start in enumerate(range(0, columns, BLOCK)):
        stop = start + BLOCK
        part, within = left[start:stop], factor[start:stop, start:stop]
        scale = (
            block_scales(part.T[:, None], importance[None, start:stop])[:, 0]
            if kept is None
            else kept[:, block]
        )
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
    ids: Tensor,
    matrices: MutableMapping[str, Quantized],
    on_layer: OnLayer | None = None,
    *,
    bits: Mapping[str, int] | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Adds every linear layer of a transformers causal language model, quantized, to ``matrices`` by its name.

    Those that are there already, of an interrupted run, are taken as they are. The model stays as it is.
    ids: int64 (windows, seq). bits: of layers that shall not have 4, by name. Those of 8 are rounded to nearest, and
    so is an output layer that is the embedding too: an embedding has no inputs to be judged by. scales: float32
    (out, in / 32) of layers that shall keep them. Raises Unsupported for
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
                matrices[name] = round_to_nearest(
                    weight, (bits or {}).get(name, BITS), (scales or {}).get(name)
                )
            else:
                matrices[name] = quantize_columns(weight, *shared.of(inputs), (scales or {}).get(name))
            if on_layer:
                on_layer(len(matrices), count)
        return matrices[name].weight()

    with computing_with((module for module in names if module is not head), weight_of):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    if names[head] not in matrices:
        weight_of(head, hidden)  # (windows, seq, hidden); its own output is not needed


def modifiers(scheme: Mapping[str, Any]) -> list[Any]:
    """llmcompressor's GPTQ; ``scheme`` as :func:`compress.quantize.rtn.modifiers` takes it."""
    from llmcompressor.modifiers.quantization import GPTQModifier

    return [GPTQModifier(**scheme)]
