"""Scales for keys and values kept at 8 bits: one per channel of each layer, from a calibration set.

Keys have a few channels much larger than the others, the same ones at every token (KIVI, arXiv 2402.02750), so that one
scale for all would leave the others no steps. onnxruntime quantizes what attention is about to keep, and reads it back
with the same scales.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.targets.architectures import widths
from everlearn.bundles.durable import write_file

QMAX = 127
"""The largest code."""
INTERLEAVED = ("ernie4_5",)
"""Model types whose rotary positions turn neighbouring channels into each other, and not the halves of a head."""


@torch.no_grad()
def write_scales(
    file: Path, model: Any, ids: Tensor, on_window: Callable[[int, int], None] | None = None
) -> None:
    """Writes what onnxruntime-genai's builder reads. ids: int64 (windows, seq)."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for done, window in enumerate(ids, start=1):
        layers = model.get_decoder()(input_ids=window[None], use_cache=True).past_key_values.layers
        for found, largest in (
            (keys, [one.keys for one in layers]),
            (values, [one.values for one in layers]),
        ):
            now = [one[0].abs().amax(1) for one in largest]  # (kv_heads, head) of (1, kv_heads, seq, head)
            found[:] = [torch.maximum(a, b) for a, b in zip(found or now, now, strict=True)]
        if on_window:
            on_window(done, len(ids))
    turned, interleaved = widths(model.config.to_dict())[1], model.config.model_type in INTERLEAVED
    keys = [of_turned_pairs(one, turned or one.shape[1], interleaved) for one in keys]
    scales = {
        name: [(one / QMAX).clamp(min=1e-8).flatten().tolist() for one in found]
        for name, found in (("k_scales", keys), ("v_scales", values))
    }
    write_file(file, json.dumps({"scales": scales}).encode())


def of_turned_pairs(largest: Tensor, turned: int, interleaved: bool) -> Tensor:
    """Rotary positions turn two channels of a head into each other: both get what the larger one needs.

    largest: (kv_heads, head). Of the first ``turned`` channels i and i + turned / 2 are such a pair, or, ``interleaved``,
    2i and 2i + 1; the others stay.
    """
    shape = (turned // 2, 2) if interleaved else (2, turned // 2)
    pairs = largest[:, :turned].unflatten(1, shape)
    both = pairs.amax(2 if interleaved else 1, keepdim=True).expand_as(pairs).flatten(1)
    return torch.cat([both, largest[:, turned:]], dim=1)
