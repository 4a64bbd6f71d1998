"""Logits of the last token alone: a prompt's others take most of the memory of its reading, and nothing reads them."""

from __future__ import annotations

from onnx import ModelProto, helper

from deploy.edge.targets import LOGITS
from everlearn.errors import Unsupported

INT64_MAX = 2**63 - 1


def keep_last_logits(model: ModelProto) -> None:
    """Cuts the output layer's input, in place: ``logits`` are (batch, 1, vocabulary) from here on.

    Raises Unsupported where no product makes them.
    """
    graph = model.graph
    at = next((at for at, node in enumerate(graph.node) if LOGITS in node.output), None)
    if at is None or graph.node[at].op_type not in ("MatMul", "MatMulNBits"):
        raise Unsupported(
            f"the graph's {LOGITS!r} are not the output of a product: its form is not known here"
        )
    head = graph.node[at]
    bounds = {"first": -1, "end": INT64_MAX, "axis": 1}
    names = [f"everlearn.last.{one}" for one in bounds]
    graph.initializer.extend(
        helper.make_tensor(n, 7, [1], [v]) for n, v in zip(names, bounds.values(), strict=True)
    )
    cut = helper.make_node("Slice", [head.input[0], *names], ["everlearn.last"], name="everlearn.last")
    head.input[0] = "everlearn.last"
    graph.node.insert(at, cut)
    (output,) = (one for one in graph.output if one.name == LOGITS)
    dim = output.type.tensor_type.shape.dim[1]
    dim.Clear()
    dim.dim_value = 1
