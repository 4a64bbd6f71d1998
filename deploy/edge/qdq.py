"""A graph of MatMulNBits with the weights dequantized in front of plain products: for runtimes without 4-bit kernels.

onnxruntime on WebAssembly multiplies MatMulNBits by dequantizing the whole matrix at every token. With a
``DequantizeLinear`` in front of the product, and ``session.disable_quant_qdq`` set, it does so once, as it loads.
No byte of the weights changes: a MatMulNBits matrix (out, blocks, bytes) of uint8 is the (out, in) matrix of uint4 or
uint8 whose zero point is 8 or 128 (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, opset 21: blocks). The
product is one with the matrix transposed: a Transpose of its own would be computed at load, and kept a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from everlearn.errors import Unsupported

OPSET = 21
"""The first in which DequantizeLinear knows blocks and 4 bits."""
CODES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}


@dataclass(frozen=True)
class Matrix:
    """What a MatMulNBits multiplies by: (rows, columns) weights of ``bits``, a scale for each ``block`` of a row."""

    name: str
    codes: str
    scales: str
    rows: int
    columns: int
    bits: int
    block: int


def matrix_of(node: NodeProto) -> Matrix:
    """Of a MatMulNBits. Raises Unsupported for bits other than 4 and 8, zero points, or rows that end within a block."""
    facts = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    bits, block, columns, rows = (int(facts[key]) for key in ("bits", "block_size", "K", "N"))
    if bits not in CODES or columns % block or any(node.input[3:]):
        zero_points = " and zero points" if any(node.input[3:]) else ""
        raise Unsupported(
            f"{node.name} has {bits} bits, blocks of {block} in rows of {columns}{zero_points}; this form takes 4 and 8 "
            "bits in whole blocks without zero points. int4-matmulnbits, which linux-x64, linux-arm64, android and ios "
            "run, takes it as it is"
        )
    return Matrix(
        node.input[1].removesuffix(".codes"), node.input[1], node.input[2], rows, columns, bits, block
    )


@dataclass
class Rewriting:
    """One graph being rewritten: its initializers by name, and nodes that are to come first."""

    graph: GraphProto
    initializers: dict[str, TensorProto]
    first: list[NodeProto] = field(default_factory=list[NodeProto])
    zero_points: dict[tuple[int, tuple[int, int]], str] = field(
        default_factory=dict[tuple[int, tuple[int, int]], str]
    )


def dequantize_once(model: ModelProto) -> None:
    """Rewrites every MatMulNBits of ``model``, in place; its tensors' bytes are neither read nor changed.

    Raises Unsupported for a matrix that has no such form, and for a graph of an older opset.
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
    drop_unused(graph)
    if not any(one.domain in ("", "ai.onnx") and one.version >= OPSET for one in model.opset_import):
        raise Unsupported(f"the graph's opset is older than {OPSET}: compress the model again")


def product(work: Rewriting, node: NodeProto) -> list[NodeProto]:
    """The nodes that stand for one MatMulNBits."""
    one = matrix_of(node)
    tensor = work.initializers[one.codes]
    tensor.data_type = CODES[one.bits]
    tensor.dims[:] = [one.rows, one.columns]
    zero_point = zero_points(work, one.bits, (one.rows, one.columns // one.block))
    inputs, weight = [one.codes, one.scales, zero_point], f"{one.name}.float"
    return [
        helper.make_node("DequantizeLinear", inputs, [weight], axis=1, block_size=one.block),
        helper.make_node(
            "FusedMatMul",
            [node.input[0], weight],
            list(node.output),
            node.name,
            domain="com.microsoft",
            transB=1,
        ),
    ]


def zero_points(work: Rewriting, bits: int, shape: tuple[int, int]) -> str:
    """The name of zero points of ``shape``: made as the graph is loaded, so that no byte is downloaded for them."""
    if (bits, shape) in work.zero_points:
        return work.zero_points[bits, shape]
    name = f"everlearn.zero.{bits}.{shape[0]}x{shape[1]}"
    work.graph.initializer.append(helper.make_tensor(f"{name}.shape", TensorProto.INT64, [2], shape))
    filled = helper.make_tensor("value", TensorProto.UINT8, [1], [1 << (bits - 1)])
    work.first.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [f"{name}.bytes"], value=filled))
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


def drop_unused(graph: GraphProto) -> None:
    """Removes, in place, the nodes and the initializers that no output needs any more."""
    wanted = {one.name for one in graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)
    used = [one for one in graph.initializer if one.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(used)
    computed = {name for node in nodes for name in node.output}
    described = [one for one in graph.value_info if one.name in computed]
    del graph.value_info[:]
    graph.value_info.extend(described)
