"""A graph's operators, one small graph each, so that a runtime says which it has: before weights are read or written.

onnxruntime looks for the kernel of each node as it opens a session. A table of kernels would have to be kept up to date,
and passes what is there and slow: those are in the table of targets, and named as well.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.shape_inference import infer_shapes

from deploy.edge.check.sessions import Place
from deploy.edge.targets import Runtime
from everlearn.errors import EverlearnError

ONNX = ("", "ai.onnx")


class CannotRun(EverlearnError):
    """A graph that a device's runtime does not run, or not well."""

    code = "cannot_run"


@dataclass(frozen=True)
class Operator:
    """An operator as a graph uses it: with these types of inputs and these attributes. ``count``: of such nodes."""

    name: str
    node: NodeProto
    count: int


def refuse_operators(model: ModelProto, runtime: Runtime, place: Place, what: str) -> None:
    """Raises CannotRun naming every operator that ``runtime`` lacks or runs slowly, and an opset that is too new."""
    refuse_known(model, runtime, what)
    refuse_missing(model, runtime, place, what)


def refuse_known(model: ModelProto, runtime: Runtime, what: str) -> None:
    """The same of what the table of targets knows: the opset, and what is slow."""
    _refuse([*opset_faults(model, runtime), *slow_faults(model, runtime)], runtime, what)


def refuse_missing(model: ModelProto, runtime: Runtime, place: Place, what: str) -> None:
    """The same of what the runtime itself says, in ``place``."""
    _refuse(list(missing_faults(model, runtime, place)), runtime, what)


def _refuse(faults: list[str], runtime: Runtime, what: str) -> None:
    if faults:
        listed = "".join(f"\n- {one}" for one in faults)
        raise CannotRun(f"{what} does not run well on {runtime.name} {runtime.version}:{listed}")


def opset_faults(model: ModelProto, runtime: Runtime) -> Iterator[str]:
    for one in model.opset_import:
        if one.domain in ONNX and one.version > runtime.opset:
            yield (
                f"its ONNX opset is {one.version}, and {runtime.opset} is the newest that {runtime.name} "
                f"{runtime.version} is sent: export it with opset {runtime.opset} or older"
            )


def slow_faults(model: ModelProto, runtime: Runtime) -> Iterator[str]:
    for one in runtime.slow:
        if count := sum(node.op_type == one.operator for node in model.graph.node):
            yield f"{one.operator} ({count} nodes) is slow: {one.why}. Instead: {one.instead}"


def missing_faults(model: ModelProto, runtime: Runtime, place: Place) -> Iterator[str]:
    """Opens a session for each operator, in ``place``."""
    with tempfile.TemporaryDirectory() as folder:
        graphs: dict[str, Operator] = {}
        types = types_of(model)
        for at, one in enumerate(operators(model, types)):
            file = Path(folder, f"{at}.onnx")
            file.write_bytes(alone(model, one.node, types).SerializeToString())
            graphs[str(file)] = one
        said = place.ask({"operators": list(graphs)})
    for file, error in said["failures"].items():
        one = graphs[file]
        told = re.sub(r"\s+", " ", error)[:300]
        yield (
            f"{one.name} ({one.count} nodes, the first {one.node.name or one.node.output[0]!r}) is missing: another "
            f"form or target may have it, or compress the model again; {runtime.name} said: {told}"
        )


def operators(model: ModelProto, types: Mapping[str, int]) -> list[Operator]:
    """Every operator once for each combination of types and attributes; of its nodes the one with the least weights."""
    sizes = {one.name: math.prod(one.dims) for one in model.graph.initializer}
    found: dict[tuple[str, ...], list[NodeProto]] = {}
    for node in model.graph.node:
        plain = (str(one) for one in node.attribute if one.name in CHOOSING)
        key = (node.domain, node.op_type, *(str(types.get(name)) for name in node.input), *plain)
        found.setdefault(key, []).append(node)
    return [
        Operator(
            f"{key[0] or 'ai.onnx'}:{key[1]}",
            min(nodes, key=lambda node: sum(sizes.get(name, 0) for name in node.input)),
            len(nodes),
        )
        for key, nodes in found.items()
    ]


CHOOSING = ("to", "bits", "block_size", "do_rotary", "axis", "saturate")
"""Attributes by which a kernel may or may not take a node."""


def types_of(model: ModelProto) -> dict[str, int]:
    """The element type of every value, by name, where the graph says it or its operators do."""
    graph = infer_shapes(model).graph
    values: list[ValueInfoProto] = [*graph.input, *graph.output, *graph.value_info]
    types = {one.name: one.type.tensor_type.elem_type for one in values}
    return types | {one.name: one.data_type for one in graph.initializer}


def alone(model: ModelProto, node: NodeProto, types: Mapping[str, int]) -> ModelProto:
    """A graph of ``node`` alone: its weights are zeros, the rest of its inputs are the graph's."""
    weights = {one.name: one for one in model.graph.initializer}
    inputs: list[ValueInfoProto] = []
    zeros: list[TensorProto] = []
    for name in dict.fromkeys(name for name in node.input if name):
        if name in weights:
            zeros.append(filled(weights[name]))
        else:
            inputs.append(helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None))
    outputs = [ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "operator", inputs, outputs, zeros)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def filled(tensor: TensorProto) -> TensorProto:
    """A tensor that is in the graph as it is; of others as many zeros."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    length = next(int(one.value) for one in tensor.external_data if one.key == "length")
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(length))
