"""Quantized matrices in the graph that onnxruntime-genai's builder made, code for code, and the file written without more.

Tensors are read when their bytes are written, one after the other, so that no more than one of them is in memory. The
file leaves out what onnxruntime makes again while it loads, and then runs the very same graph: scales are float16 and
cast (as float32 a block of 32 weights of 4 bits would pay a fifth of its bytes for its scale), and the tables of
rotary positions are computed. Both are constants, which onnxruntime folds before it lays out the weights: loading,
memory and speed stay as they were.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from compress.quantize.blocks import BLOCK
from compress.quantize.mapped import give_back
from compress.quantize.matrices import Matrices, unpacked
from compress.quantize.sensitivity import STACKS
from everlearn.errors import Unsupported
from everlearn.progress import Progress

ACCURACY = 4
"""Lets the kernels multiply in int8."""
NEAR = 0.5
"""Two roundings of one matrix differ by about 0.1 of its norm, two matrices by 1.4."""
COMPARED_ROWS = 256
ROUNDING = 2.0**-11
"""Of float16, relative."""
BESIDE_LARGEST = 1e-4
"""A scale may be off by this share of its matrix's largest: float16 is coarse below 6e-5."""
INLINE_BYTES = 1024
ALSO_CALLED = {"o_proj": ("dense", "out_proj")}
"""What the builder gives one name and architectures give others."""


def quantize_graph(model: ir.Model, matrices: Matrices) -> None:
    """Every product with a constant matrix becomes one with the matrix, or the stack of them, of that layer's name.

    Raises Unsupported for one that is no layer's, and for one that is plainly with another matrix: this architecture's
    graph is not understood.
    """
    casts: list[ir.Node] = []
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer():
            multiply_packed(model.graph, node, layers_of(node, matrices), matrices, casts)
    model.graph.insert_before(model.graph[0], casts)


def multiply_packed(
    graph: ir.Graph, node: ir.Node, names: list[str], matrices: Matrices, casts: list[ir.Node]
) -> None:
    """The MatMul is a MatMulNBits from here on, with the stack of the matrices of ``names``."""
    weight = node.inputs[1]
    assert weight is not None and weight.name and weight.shape is not None
    columns, out = (int(one) for one in weight.shape)
    parts = [matrices.packed(name) for name in names]
    codes, rows = [one[0] for one in parts], sum(len(one[0]) for one in parts)
    blocks = {one.shape[1:] for one in codes}
    if rows != out or len(blocks) != 1 or codes[0].shape[1] != -(-columns // BLOCK):
        raise Unsupported(f"{node.name} of this graph, {out} by {columns}, is no layer of the model")
    if len(names) == 1 and "logits" not in {one.name for one in node.outputs}:  # there is one output layer
        refuse_another(node, *parts[0])

    def all_codes() -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([one.numpy() for one in codes]))

    name = weight.name
    del graph.initializers[name]
    shape = ir.Shape((out, *codes[0].shape[1:]))
    tensor = ir.LazyTensor(all_codes, dtype=ir.DataType.UINT8, shape=shape, name=f"{name}.codes")
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.resize_inputs(3)
    node.replace_input_with(1, constant(graph, tensor))
    node.replace_input_with(2, scales_of(graph, f"{name}.scales", [one[1] for one in parts], casts))
    bits = codes[0].shape[-1] * 8 // BLOCK
    facts = {"K": columns, "N": out, "bits": bits, "block_size": BLOCK, "accuracy_level": ACCURACY}
    for key, value in facts.items():
        node.attributes[key] = ir.AttrInt64(key, value)


def layers_of(node: ir.Node, matrices: Container[str]) -> list[str]:
    """The names of the layers whose product ``node`` is; none where it is not understood."""
    name = (node.name or "").removeprefix("/").rpartition("/MatMul")[0].replace("/", ".")
    name = name.replace(".attn.", ".self_attn.")
    folder, _, last = name.rpartition(".")
    for same in (last, *ALSO_CALLED.get(last, ())):
        if f"{folder}.{same}".lstrip(".") in matrices:
            return [f"{folder}.{same}".lstrip(".")]
    names = [f"{folder}.{part}" for part in STACKS.get(last, ())]
    return names if all(one in matrices for one in names) else []


def refuse_another(node: ir.Node, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Raises Unsupported unless the first rows of the builder's matrix are near those of ours."""
    assert node.inputs[1] is not None and node.inputs[1].const_value is not None
    theirs = node.inputs[1].const_value.numpy()[:, :COMPARED_ROWS].T
    ours = unpacked(codes[: len(theirs)], scales[: len(theirs)]).weight().numpy()[:, : theirs.shape[1]]
    difference = np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-12)
    del theirs
    give_back()
    if not difference < NEAR:
        raise Unsupported(f"{node.name} of this graph is not with the layer of that name")


def scales_of(graph: ir.Graph, name: str, parts: list[torch.Tensor], casts: list[ir.Node]) -> ir.Value:
    """Scales as the node reads them: a constant in float32, or cast from one in float16. parts: (out, blocks) each.

    Made again when they are written: what stays in memory between large temporary tensors keeps malloc from giving
    those back.
    """

    def whole() -> np.ndarray:
        return np.concatenate([one.numpy() for one in parts])

    scales = whole()
    shape = ir.Shape(scales.shape)
    if halved(scales) is None:
        single = ir.LazyTensor(lambda: ir.Tensor(whole()), dtype=ir.DataType.FLOAT, shape=shape, name=name)
        return constant(graph, single)
    half = ir.LazyTensor(
        lambda: ir.Tensor(whole().astype(np.float16)),
        dtype=ir.DataType.FLOAT16,
        shape=shape,
        name=f"{name}.half",
    )
    cast = ir.node("Cast", [constant(graph, half)], {"to": ir.DataType.FLOAT})
    casts.append(cast)
    return named(cast, name, ir.DataType.FLOAT, scales.shape)


def halved(scales: np.ndarray) -> np.ndarray | None:
    """float16 of float32, or None where a scale that matters would be rounded by more than float16 rounds."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    largest = np.abs(scales).max(initial=0)
    difference = np.abs(half.astype(np.float32) - scales)
    return half if (difference <= ROUNDING * np.abs(scales) + BESIDE_LARGEST * largest).all() else None


def share_embedding(graph: ir.Graph) -> bool:
    """Lets the embedding read the codes of the output layer; whether it does: what is not recognised stays in float32.

    MatMulNBits keeps W (vocab, hidden) as uint8 (vocab, blocks, bytes) with scales (vocab, blocks); a row of the
    embedding is the same row of W.
    """
    heads = [n for n in graph if n.op_type == "MatMulNBits" and n.name == "/lm_head/MatMul"]
    gathers = [
        n
        for n in graph
        if n.op_type == "Gather" and n.inputs[1] is not None and n.inputs[1].name == "input_ids"
    ]
    if len(heads) != 1 or len(gathers) != 1:
        return False
    head, gather = heads[0], gathers[0]
    table = gather.inputs[0]
    facts = {key: head.attributes[key].as_int() for key in ("K", "N", "bits")}
    known = table is not None and table.name and table.is_initializer()
    if not known or facts["K"] % BLOCK or list(table.shape or ()) != [facts["N"], facts["K"]]:
        return False
    rows = constant(graph, ir.tensor([-1, facts["K"] * facts["bits"] // 8], name="everlearn.embedding_shape"))
    flat = ir.node("Reshape", [head.inputs[1], rows])
    named(flat, "everlearn.embedding", ir.DataType.UINT8, (facts["N"], facts["K"] * facts["bits"] // 8))
    graph.insert_before(gather, [flat])
    gather.op_type, gather.domain = "GatherBlockQuantized", "com.microsoft"
    gather.resize_inputs(3)
    gather.replace_input_with(0, flat.outputs[0])
    gather.replace_input_with(2, head.inputs[2])
    gather.attributes.clear()
    facts = {"bits": facts["bits"], "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    for key, value in facts.items():
        gather.attributes[key] = ir.AttrInt64(key, value)
    del graph.initializers[table.name]
    return True


def constant(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Registers ``tensor`` under its name."""
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def named(node: ir.Node, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """The output of ``node``, with what it is."""
    (value,) = node.outputs
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    return value


def save_graph(model: ir.Model, graph_file: Path, progress: Progress) -> None:
    """Writes the graph, and its tensors in one file beside it, one after the other."""
    model.graph.sort()

    def written(_tensor: ir.TensorProtocol, at: Any) -> None:
        progress("writing the graph", at.index / at.total)

    ir.save(
        model,
        graph_file,
        external_data=f"{graph_file.name}.data",
        size_threshold_bytes=INLINE_BYTES,
        callback=written,
        max_workers=1,
    )
