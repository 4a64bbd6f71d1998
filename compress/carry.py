"""Quantized matrices into the very graph that onnxruntime-genai's builder made, code for code: nothing is rounded anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.gptq import BLOCK, Quantized
from compress.sensitivity import STACKS
from compress.slim_graph import save_graph
from compress.tied_embedding import attributes
from everlearn.errors import Unsupported

NEAR = 0.5
"""Two roundings of one matrix differ by about 0.1 of its norm, two matrices by 1.4."""


def carry(graph_file: Path, matrices: Mapping[str, Quantized]) -> None:
    """Replaces codes and scales of every MatMulNBits in ``graph_file`` by those of ``matrices``, by module name.

    A node takes on the bits of its matrix; where ``matrices`` holds the output layer alone, the others stay. An
    embedding that shares the output layer's codes follows by itself. Raises Unsupported where a node has no
    counterpart, or one that is plainly another matrix: this architecture's graph is not understood here.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph_file)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and (len(matrices) > 1 or "logits" in node.output):
            matrix = counterpart(node, matrices)
            codes, scales = tensors[node.input[1]], tensors[node.input[2]]
            bits = next(attribute for attribute in node.attribute if attribute.name == "bits")
            theirs = unpacked(numpy_helper.to_array(codes), numpy_helper.to_array(scales), bits.i)
            refuse_another(node.name, matrix.weight().numpy(), theirs)
            bits.i = matrix.bits
            codes.CopyFrom(numpy_helper.from_array(packed(matrix), codes.name))
            scales.CopyFrom(numpy_helper.from_array(matrix.scales.numpy(), scales.name))
    save_graph(model, graph_file)


def counterpart(node: Any, matrices: Mapping[str, Quantized]) -> Quantized:
    """The quantized layer, or the stack of layers, that a node of the graph computes."""
    import torch

    facts = attributes(node)
    name = (
        node.name.removeprefix("/")
        .rpartition("/MatMul")[0]
        .replace("/", ".")
        .replace(".attn.", ".self_attn.")
    )
    folder, _, last = name.rpartition(".")
    names = [name] if name in matrices else [f"{folder}.{part}" for part in STACKS.get(last, ())]
    found = [matrices[each] for each in names if each in matrices]
    known = found and len(found) == len(names) and len({one.bits for one in found}) == 1
    if not known or facts["block_size"] != BLOCK:
        raise Unsupported(f"GPTQ does not know the layer {node.name} of this graph; weights: rtn builds it")
    codes, scales = (torch.cat([getattr(one, part) for one in found]) for part in ("codes", "scales"))
    return Quantized(codes, scales, found[0].bits)


def refuse_another(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raises Unsupported unless the builder's own rounding is near."""
    apart = (
        np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12)
        if ours.shape == theirs.shape
        else 1
    )
    if not apart < NEAR:
        raise Unsupported(
            f"the graph's {name} {theirs.shape} is not the layer of that name {ours.shape}; weights: rtn builds it"
        )


def packed(matrix: Quantized) -> np.ndarray:
    """As MatMulNBits stores them: uint8 (out, blocks, bytes); of 4 bits the even columns in the low half of a byte."""
    codes = matrix.codes.numpy()
    if matrix.bits == 8:
        return codes.reshape(len(codes), -1, BLOCK)
    return (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(codes), -1, BLOCK // 2)


def unpacked(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """What MatMulNBits multiplies by: float32 (out, in)."""
    halves = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1)
    blocks = halves.reshape(len(codes), -1, BLOCK).astype(np.float32) - (1 << bits - 1)
    return (blocks * scales.reshape(len(codes), -1, 1)).reshape(len(codes), -1)
