"""A decoder with weights of 8 bits for each output channel, and activations as integers of two bytes.

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
FINER = 254
"""Steps of the second byte in one of the first: what rounding leaves is at most half a step, and 127 of these."""
CONSTANTS: Mapping[str, np.ndarray] = {
    "last_axis": np.array([-1], np.int64),
    "one_127th": np.array(1 / LARGEST, np.float32),
    "least_step": np.array(1e-20, np.float32),
    "finer": np.array(FINER, np.float32),
    "one_finer": np.array(1 / FINER, np.float32),
    "centre": np.array(CENTRE, np.float32),
    "zero_point": np.array(CENTRE, np.uint8),
}


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
    """The product with activations as integers, each token by its own largest, in two bytes: what the first one leaves
    is multiplied as further rows of the same product.

    One byte alone loses too much of a decoder: its activations have outliers (SmolLM2: 0.07 nats per token, and logits
    up to 5 apart), and runtimes that round one sum otherwise then differ by as much.
    """
    given, out = node.input[0], node.output[0]

    def of(name: str) -> str:
        return f"{out}.{name}"

    made = [
        ("Abs", [given], ["abs"], {}),
        ("ReduceMax", ["abs", "last_axis"], ["largest"], {"keepdims": 1}),
        ("Mul", ["largest", "one_127th"], ["raw_step"], {}),
        ("Max", ["raw_step", "least_step"], ["step"], {}),
        ("Div", [given, "step"], ["in_steps"], {}),
        ("Round", ["in_steps"], ["first"], {}),
        ("Sub", ["in_steps", "first"], ["left"], {}),
        ("Mul", ["left", "finer"], ["left_finer"], {}),
        ("Round", ["left_finer"], ["second"], {}),
        ("Concat", ["first", "second"], ["signed"], {"axis": 1}),  # (batch, 2 seq, in)
        ("Add", ["signed", "centre"], ["positive"], {}),
        ("Cast", ["positive"], ["uint8"], {"to": TensorProto.UINT8}),
        ("MatMulInteger", ["uint8", codes, "zero_point"], ["int32"], {}),
        ("Cast", ["int32"], ["float"], {"to": TensorProto.FLOAT}),
        ("Split", ["float"], ["of_first", "of_second"], {"axis": 1, "num_outputs": 2}),
        ("Mul", ["of_second", "one_finer"], ["of_left"], {}),
        ("Add", ["of_first", "of_left"], ["sum"], {}),
        ("Mul", ["sum", "step"], ["by_token"], {}),
        ("Mul", ["by_token", scales], [out], {}),
    ]
    shared = {name: f"everlearn.{name}" for name in CONSTANTS}
    own = {name: of(name) for _, _, outputs, _ in made for name in outputs if name != out}
    names = shared | own
    return [
        helper.make_node(kind, [names.get(n, n) for n in inputs], [names.get(n, n) for n in outputs], **facts)
        for kind, inputs, outputs, facts in made
    ]


def constants() -> list[TensorProto]:
    """What every rounding of activations reads."""
    return [numpy_helper.from_array(value, f"everlearn.{name}") for name, value in CONSTANTS.items()]


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
