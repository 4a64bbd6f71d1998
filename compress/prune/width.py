"""Feed-forward columns and attention heads taken out of every layer: those that matter least on a calibration set."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.layers import OnPart, layers_of, of_config
from compress.quantize.capture import capture_inputs
from everlearn.errors import InvalidInput, Unsupported

FFN_MULTIPLE = 32
"""Widths stay multiples of a quantizer's block."""


@torch.no_grad()
def narrow_ffn(model: Any, width: int, ids: Tensor, on_part: OnPart | None = None) -> Any:
    """A copy whose feed-forward layers have ``width`` columns: those that matter most on ``ids`` (rows, seq).

    Raises InvalidInput, Unsupported for another feed-forward layer.
    """
    config = deepcopy(model.config)
    before = getattr(config, "intermediate_size", None)
    layers = layers_of(model)
    if before is None or not all(
        hasattr(getattr(layer, "mlp", None), part)
        for layer in layers
        for part in ("gate_proj", "up_proj", "down_proj")
    ):
        raise Unsupported("ffn: the feed-forward layers of this architecture are not gate, up and down")
    if not FFN_MULTIPLE <= width < before or width % FFN_MULTIPLE:
        raise InvalidInput(
            f"ffn ({width}) must be a multiple of {FFN_MULTIPLE} below the model's {before}", param="ffn"
        )
    weighed = importance(model, [layer.mlp.down_proj for layer in layers], ids, on_part)  # type: ignore[union-attr]
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            kept = weighed[module.down_proj].topk(width).indices.sort().values
            for part in ("gate_proj", "up_proj"):
                for kind in ("weight", "bias"):
                    if f"{name}.{part}.{kind}" in state:
                        state[f"{name}.{part}.{kind}"] = state[f"{name}.{part}.{kind}"][kept]
            state[f"{name}.down_proj.weight"] = state[f"{name}.down_proj.weight"][:, kept]
    config.intermediate_size = width
    return of_config(model, config, state)


@torch.no_grad()
def narrow_attention(model: Any, kv_heads: int, ids: Tensor, on_part: OnPart | None = None) -> Any:
    """A copy whose attention has ``kv_heads`` heads of keys and values, with the queries' heads that read them.

    Those stay that matter most on ``ids`` (rows, seq), with all their columns. Raises InvalidInput, Unsupported for
    another attention.
    """
    config = deepcopy(model.config)
    layers = layers_of(model)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(hasattr(getattr(layer, "self_attn", None), part) for layer in layers for part in parts):
        raise Unsupported(f"kv_heads: the attention of this architecture is not {', '.join(parts)}")
    heads, before = config.num_attention_heads, config.num_key_value_heads
    if not 1 <= kv_heads < before:
        raise InvalidInput(f"kv_heads ({kv_heads}) must be below the model's {before}", param="kv_heads")
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    weighed = importance(model, [layer.self_attn.o_proj for layer in layers], ids, on_part)  # type: ignore[union-attr]
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not name.endswith(".self_attn"):
            continue
        best = weighed[module.o_proj].view(before, -1).sum(-1).topk(kv_heads).indices.sort().values
        for part in parts:
            columns = size if part in ("k_proj", "v_proj") else size * heads // before  # of a head of keys
            kept = (best[:, None] * columns + torch.arange(columns)).flatten()
            weight = state[f"{name}.{part}.weight"]
            state[f"{name}.{part}.weight"] = weight[:, kept] if part == "o_proj" else weight[kept]
            if part != "o_proj" and f"{name}.{part}.bias" in state:
                state[f"{name}.{part}.bias"] = state[f"{name}.{part}.bias"][kept]
    config.num_attention_heads, config.num_key_value_heads = heads // before * kv_heads, kv_heads
    config.head_dim = size
    return of_config(model, config, state)


def importance(
    model: Any, readers: Sequence[Any], ids: Tensor, on_part: OnPart | None = None
) -> dict[nn.Module, Tensor]:
    """For each of some linear layers how much each of its inputs matters on ``ids`` (rows, seq): float32 (in,).

    The mean size of the input times the norm of the weights that read it: Wanda's measure (arXiv 2306.11695) summed
    over a column.
    """
    found: dict[nn.Module, Tensor] = {}

    def weigh(module: nn.Linear, given: Tensor) -> None:
        found[module] = given.flatten(0, -2).abs().mean(0) * module.weight.norm(dim=0)
        if on_part:
            on_part(len(found), len(readers))

    with capture_inputs(readers, weigh):
        model.get_decoder()(input_ids=ids, use_cache=False)
    return found
