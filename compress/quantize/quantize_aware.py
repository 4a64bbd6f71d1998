"""Training that sees its weights as INT4 will round them, so that they settle where rounding costs little.

Each step computes with rounded weights, and moves the unrounded ones by the gradient of the rounded (the
straight-through estimator, arXiv 1308.3432). Taught by the unrounded model's predictions, as in LLM-QAT (arXiv
2305.17888). The grid is that of ``int4-onnx`` with ``weights: rtn``: weights that lie on it are rounded to themselves,
so the export has the trained model's very weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.quantize.blocks import BITS, layers_in_blocks, round_to_nearest


class Rounded(nn.Module):
    """A weight (out, in) as so many bits have it; its gradient is that of the weight itself."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            lost = round_to_nearest(weight, self.bits).weight().sub_(weight)
        return weight + lost


def round_in_training(model: Any, head_bits: int) -> list[nn.Module]:
    """From here on ``model`` computes with rounded weights: its linear layers', and the embedding's that is tied to the
    output layer. Returns the modules that do. Raises Unsupported for a layer whose width is no multiple of 32.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    bits: dict[nn.Module, int] = dict.fromkeys(layers_in_blocks(model), BITS)
    bits[head] = head_bits
    if embedding.weight is head.weight:
        bits[embedding] = head_bits
    for module, its in bits.items():
        parametrize.register_parametrization(module, "weight", Rounded(its))
    return list(bits)


def keep_rounded(modules: list[nn.Module]) -> None:
    """Ends it: the weights are the rounded ones."""
    for module in modules:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
