"""A decoder with weights of 8 bits for each output channel, and activations rounded as they come.

onnxruntime has products of integers on WebAssembly, so that weights stay at 8 bits in memory: slower there than products
in float32, and in half the memory. A tied embedding reads the output layer's codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.edge.qdq import Matrix, drop_unused, matrix_of
from deploy.edge.weights import Content, from_memory
from everlearn.errors import Unsupported

LARGEST = 127
CENTRE = 128
"""Activations are unsigned: kernels of products of two signed bytes are several times slower."""


@dataclass
class Rounding:
    """A graph being rewritten. ``sources``: its tensors as they were; ``contents``: those that it is to have."""

    graph: GraphProto
    sources: Mapping[str, Content]
    contents: dict[str, Content]

    def add(self, name: str, dtype: int, dims: list[int], content: Content) -> str:
        self.graph.initializer.append(TensorProto(name=name, data_type=dtype, dims=dims))
        self.contents[name] = content
        return name


def round_to_int8(model: ModelProto, contents: dict[str, Content]) -> None:
    """Rewrites every MatMulNBits of ``model`` and its shared embedding, in place; ``contents`` becomes its tensors'.

    Raises Unsupported as deploy.edge.qdq.matrix_of does.
    """
    graph = model.graph
    inline = {one.name: one for one in graph.initializer if one.name not in contents}
    sources = {name: from_memory(numpy_helper.to_array(one).tobytes()) for name, one in inline.items()}
    work = Rounding(graph, sources | contents, contents)
    gathers = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    reshaped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    tables = {reshaped.get(node.input[0], node.input[0]): node for node in gathers}
    graph.initializer.extend(constants())
    nodes: list[NodeProto] = []
    shared: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            matrix = matrix_of(node)
            nodes += product(work, node, matrix, by_rows=matrix.codes in tables)
            if matrix.codes in tables:
                shared[tables[matrix.codes].output[0]] = embedding(tables[matrix.codes], matrix)
        else:
            nodes.append(node)
    if len(shared) != len(gathers):
        raise Unsupported(
            "the graph's embedding is not its output layer, and rounding it to 8 bits is not known here"
        )
    nodes = [one for node in nodes for one in shared.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    for name in contents.keys() - {one.name for one in graph.initializer}:
        del contents[name]


def product(work: Rounding, node: NodeProto, matrix: Matrix, by_rows: bool) -> list[NodeProto]:
    """The nodes that stand for one MatMulNBits; with ``by_rows`` its codes stay (out, in), for an embedding to read."""
    codes, scales, dims = f"{matrix.name}.int8", f"{matrix.name}.int8.scales", [matrix.columns, matrix.rows]
    shape = dims[::-1] if by_rows else dims
    read = Reading(work.sources, matrix)
    work.add(
        codes, TensorProto.INT8, shape, Content(matrix.rows * matrix.columns, lambda: read.codes(by_rows))
    )
    work.add(scales, TensorProto.FLOAT, [matrix.rows], Content(4 * matrix.rows, read.scales))
    before: list[NodeProto] = []
    if by_rows:
        before = [helper.make_node("Transpose", [codes], [f"{codes}.columns"], perm=[1, 0])]
        codes = f"{codes}.columns"
    return [*before, *by_token(node, codes, scales)]


def by_token(node: NodeProto, codes: str, scales: str) -> list[NodeProto]:
    """The product with activations rounded to 8 bits, each token by its own largest.

    DynamicQuantizeMatMul rounds a whole prompt by its largest, and that is the first token's, many times the others'.
    """
    given, out = node.input[0], node.output[0]
    size, largest, rounded = f"{out}.abs", f"{out}.largest", f"{out}.uint8"
    made = [
        ("Abs", [given], [size], {}),
        ("ReduceMax", [size, "everlearn.last_axis"], [largest], {"keepdims": 1}),
        ("Mul", [largest, "everlearn.one_127th"], [f"{out}.step"], {}),
        ("Max", [f"{out}.step", "everlearn.least_step"], [f"{out}.steps"], {}),
        ("Div", [given, f"{out}.steps"], [f"{out}.in_steps"], {}),
        ("Round", [f"{out}.in_steps"], [f"{out}.whole"], {}),
        ("Add", [f"{out}.whole", "everlearn.centre"], [f"{out}.positive"], {}),
        ("Cast", [f"{out}.positive"], [rounded], {"to": TensorProto.UINT8}),
        ("MatMulInteger", [rounded, codes, "everlearn.zero_point"], [f"{out}.int32"], {}),
        ("Cast", [f"{out}.int32"], [f"{out}.float"], {"to": TensorProto.FLOAT}),
        ("Mul", [f"{out}.float", f"{out}.steps"], [f"{out}.by_token"], {}),
        ("Mul", [f"{out}.by_token", scales], [out], {}),
    ]
    return [helper.make_node(kind, inputs, outputs, **facts) for kind, inputs, outputs, facts in made]


def constants() -> list[TensorProto]:
    """What every rounding of activations reads."""
    return [
        helper.make_tensor("everlearn.last_axis", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("everlearn.one_127th", TensorProto.FLOAT, [], [1 / LARGEST]),
        helper.make_tensor("everlearn.least_step", TensorProto.FLOAT, [], [1e-20]),
        helper.make_tensor("everlearn.centre", TensorProto.FLOAT, [], [CENTRE]),
        helper.make_tensor("everlearn.zero_point", TensorProto.UINT8, [], [CENTRE]),
    ]


def embedding(gather: NodeProto, matrix: Matrix) -> list[NodeProto]:
    """Rows of the output layer by token id, in float32."""
    name, ids, out = f"{matrix.name}.int8", gather.input[1], gather.output[0]
    return [
        helper.make_node("Gather", [name, ids], [f"{out}.codes"]),
        helper.make_node("Cast", [f"{out}.codes"], [f"{out}.float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}.scales", ids], [f"{out}.scales"]),
        helper.make_node("Unsqueeze", [f"{out}.scales", "everlearn.last_axis"], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out], gather.name),
    ]


@dataclass(frozen=True)
class Reading:
    """One matrix, read and rounded again when its bytes are asked for."""

    sources: Mapping[str, Content]
    matrix: Matrix

    def codes(self, by_rows: bool) -> Iterator[bytes]:
        weight = self.weight()
        rounded = np.rint(weight / channel_scales(weight)[:, None]).astype(np.int8)
        yield np.ascontiguousarray(rounded if by_rows else rounded.T).tobytes()

    def scales(self) -> Iterator[bytes]:
        yield channel_scales(self.weight()).tobytes()

    def weight(self) -> np.ndarray:
        """float32 (out, in)."""
        one = self.matrix
        raw = np.frombuffer(joined(self.sources[one.codes]), np.uint8)
        codes = np.stack([raw & 15, raw >> 4], -1) if one.bits == 4 else raw
        blocks = codes.reshape(one.rows, -1, one.block).astype(np.float32) - (1 << (one.bits - 1))
        return (blocks * self.block_scales()[:, :, None]).reshape(one.rows, one.columns)

    def block_scales(self) -> np.ndarray:
        """float32 (out, blocks): the graph's own, or what it casts from float16."""
        name = self.matrix.scales
        half = f"{name}.half"
        raw, dtype = (
            (self.sources[half], np.float16) if half in self.sources else (self.sources[name], np.float32)
        )
        return np.frombuffer(joined(raw), dtype).reshape(self.matrix.rows, -1).astype(np.float32)


def joined(content: Content) -> bytes:
    return b"".join(content.chunks())


def channel_scales(weight: np.ndarray) -> np.ndarray:
    """float32 (out,) of (out, in): the largest of each output channel is 127."""
    largest = np.abs(weight).max(axis=1)
    return (np.where(largest > 0, largest, 1.0) / LARGEST).astype(np.float32)
