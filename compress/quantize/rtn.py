"""Round to nearest: every weight to the next code of its block, without looking at what the model reads."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from compress.quantize.blocks import BITS, OnLayer, Quantized, linear_layers, round_to_nearest


@torch.no_grad()
def quantize_model(
    model: Any,
    ids: Tensor | None,
    matrices: MutableMapping[str, Quantized],
    on_layer: OnLayer | None = None,
    *,
    bits: Mapping[str, int] | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Adds every linear layer of a transformers causal language model, quantized, to ``matrices`` by its name.

    Those that are there already, of an interrupted run, are taken as they are. The model stays as it is. ids: the
    calibration set, int64 (windows, seq), which is not read. bits: of layers that shall not have 4, by name. scales: float32
    (out, in / 32) of layers that shall keep them.
    """
    layers = linear_layers(model)
    for module, name in layers.items():
        if name not in matrices:
            matrices[name] = round_to_nearest(
                module.weight, (bits or {}).get(name, BITS), (scales or {}).get(name)
            )
        if on_layer:
            on_layer(len(matrices), len(layers))


def modifiers(scheme: Mapping[str, Any]) -> list[Any]:
    """llmcompressor's rounding. scheme: the arguments of each of its quantizing modifiers, which layers to round and to what."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return [QuantizationModifier(**scheme)]
