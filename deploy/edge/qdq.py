"""A graph of MatMulNBits with the weights dequantized in front of plain products: for runtimes without 4-bit kernels.

onnxruntime on WebAssembly multiplies MatMulNBits by dequantizing the whole matrix at every token. With a
``DequantizeLinear`` in front of a ``MatMul``, and ``session.disable_quant_qdq`` set, it does so once, as it loads.
No byte of the weights changes: a MatMulNBits matrix (out, blocks, bytes) of uint8 is the (out, in) matrix of uint4 or
uint8 whose zero point is 8 or 128 (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, opset 21: blocks).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from everlearn.errors import Unsupported

OPSET = 21
"""The first in which DequantizeLinear knows blocks and 4 bits."""
CODES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}


@dataclass
class Rewriting:
    """One graph being rewritten: its initializers by name, and nodes that are to come first."""

    graph: GraphProto
    initializers: dict[str, TensorProto]
    first: list[NodeProto] = field(default_factory=list[NodeProto])
    zero_points: dict[tuple[int, tuple[int, ...]], str] = field(
        default_factory=dict[tuple[int, tuple[int, ...]], str]
    )

    def constant(self, name: str, values: list[int], dtype: int = TensorProto.INT64) -> str:
        """The name of a constant vector."""
        if name not in self.initializers:
            made = helper.make_tensor(name, dtype, [len(values)], values)
            self.graph.initializer.append(made)
            self.initializers[name] = made
        return name


def dequantize_once(model: ModelProto) -> None:
    """Rewrites every MatMulNBits of ``model``, in place; its tensors' bytes are neither read nor changed.

    Raises Unsupported for a matrix that has no such form: bits other than 4 and 8, zero points of its own, or rows
    that end within a block.
    """
    graph = model.graph
    work = Rewriting(graph, {one.name: one for one in graph.initializer})
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            nodes += product(work, node)
        else:
            nodes.append(node)
    nodes = without_flattening(work, nodes)
    del graph.node[:]
    graph.node.extend(work.first + nodes)
    read = {name for node in graph.node for name in node.input}
    used = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    if not any(one.domain in ("", "ai.onnx") and one.version >= OPSET for one in model.opset_import):
        raise Unsupported(f"the graph's opset is older than {OPSET}: compress the model again")


def product(work: Rewriting, node: NodeProto) -> list[NodeProto]:
    """The nodes that stand for one MatMulNBits: dequantized, transposed, multiplied."""
    facts = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    bits, block, columns, rows = (facts[key] for key in ("bits", "block_size", "K", "N"))
    if bits not in CODES or columns % block or any(node.input[3:]):
        raise Unsupported(
            f"{node.name} has {bits} bits, blocks of {block} in rows of {columns}"
            f"{' and zero points' if any(node.input[3:]) else ''}: compress the model again"
        )
    codes, scales = node.input[1], node.input[2]
    tensor = work.initializers[codes]
    tensor.data_type = CODES[bits]
    tensor.dims[:] = [rows, columns]
    zero_point = zero_points(work, bits, (rows, columns // block))
    name = codes.removesuffix(".codes")
    return [
        helper.make_node(
            "DequantizeLinear", [codes, scales, zero_point], [f"{name}.rows"], axis=1, block_size=block
        ),
        helper.make_node("Transpose", [f"{name}.rows"], [f"{name}.columns"], perm=[1, 0]),
        helper.make_node("MatMul", [node.input[0], f"{name}.columns"], list(node.output), name=node.name),
    ]


def zero_points(work: Rewriting, bits: int, shape: tuple[int, ...]) -> str:
    """The name of zero points of ``shape``: made as the graph is loaded, so that no byte is downloaded for them."""
    if (bits, shape) in work.zero_points:
        return work.zero_points[bits, shape]
    name = f"everlearn.zero.{bits}.{'x'.join(map(str, shape))}"
    of = work.constant(f"{name}.shape", list(shape))
    filled = helper.make_tensor("value", TensorProto.UINT8, [1], [1 << (bits - 1)])
    work.first.append(helper.make_node("ConstantOfShape", [of], [f"{name}.bytes"], value=filled))
    work.first.append(helper.make_node("Cast", [f"{name}.bytes"], [name], to=CODES[bits]))
    work.zero_points[bits, shape] = name
    return name


def without_flattening(work: Rewriting, nodes: list[NodeProto]) -> list[NodeProto]:
    """Drops the Reshape that made rows of a shared output layer's codes for the embedding: they are rows now."""
    flat = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Reshape"
        and (tensor := work.initializers.get(node.input[0])) is not None
        and tensor.data_type in CODES.values()
        and len(tensor.dims) == 2
    }
    kept = [node for node in nodes if not (node.output and node.output[0] in flat)]
    for node in kept:
        for at, name in enumerate(node.input):
            node.input[at] = flat.get(name, name)
    return kept
