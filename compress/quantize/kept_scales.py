"""Scales of an ONNX decoder that is there, by layer: a version that updates it is rounded to them.

A lesson moves few weights by more than half a step, so with the same scales most codes stay, and so do all scales: the
difference between two versions is small (docs/updates.md has both prices).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compress.quantize.blocks import BLOCK
from compress.targets.quantized_graph import layers_of
from everlearn.errors import Unsupported


def kept_scales(bundle: Path, rows: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """float32 (out, blocks) and the bits of every layer of ``rows``, which has each layer's number of outputs.

    Raises Unsupported where the bundle's graph has no such layer, or other shapes: it is of another model.
    """
    graph = ir.load(bundle / "model.onnx").graph
    scales: dict[str, Tensor] = {}
    bits: dict[str, int] = {}
    for node in graph:
        if node.op_type != "MatMulNBits":
            continue
        facts = {key: node.attributes[key].as_int() for key in ("K", "N", "bits", "block_size")}
        names = layers_of(node, rows)
        if sum(rows[name] for name in names) != facts["N"] or facts["block_size"] != BLOCK:
            raise Unsupported(
                f"{node.name} of {bundle.name} has other layers than this model: compress with fresh scales"
            )
        parts = values(node.inputs[2]).reshape(facts["N"], -1).split([rows[name] for name in names])
        scales |= dict(zip(names, parts, strict=True))
        bits |= dict.fromkeys(names, facts["bits"])
    if missing := sorted(rows.keys() - scales.keys()):
        raise Unsupported(f"the graph of {bundle.name} has no {missing[0]}: compress with fresh scales")
    return scales, bits


def values(value: ir.Value | None) -> Tensor:
    """float32 of a constant, or of what casts one."""
    producer = value.producer() if value is not None else None
    constant = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    if constant is None or constant.const_value is None:
        raise Unsupported("the scales of this graph are no constants: compress with fresh scales")
    return torch.from_numpy(constant.const_value.numpy().astype(np.float32))
