"""One INT8 matrix for the embedding and the output layer of a model that ties them.

onnxruntime-genai's builder shares them at 4 bits alone; at 8 it keeps the embedding in float32, which for a small
model is as large as everything else together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.slim_graph import save_graph

BITS = 8


def share_embedding(graph_file: Path) -> bool:
    """Let the embedding of ``graph_file`` read the output layer's INT8 weights; False where there are none.

    MatMulNBits keeps W (vocab, hidden) as uint8 (vocab, blocks, block_size) with scales (vocab, blocks); a row of
    the embedding is the same row of W.
    """
    import onnx
    from onnx import helper

    model = onnx.load(graph_file)
    graph = model.graph
    head = next(node for node in graph.node if "logits" in node.output)
    gather = next((n for n in graph.node if n.op_type == "Gather" and "input_ids" in n.input), None)
    if gather is None or head.op_type != "MatMulNBits" or attributes(head)["bits"] != BITS:
        return False
    hidden, block_size = attributes(head)["K"], attributes(head)["block_size"]
    weight, scales = head.input[1], head.input[2]
    zero_points = list(head.input[3:4])
    shape = helper.make_tensor("everlearn.embedding_shape", onnx.TensorProto.INT64, [2], [-1, hidden])
    rows = helper.make_node("Reshape", [weight, shape.name], ["everlearn.embedding"])
    lookup = helper.make_node(
        "GatherBlockQuantized",
        [rows.output[0], "input_ids", scales, *zero_points],
        list(gather.output),
        domain="com.microsoft",
        bits=BITS,
        block_size=block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    at = list(graph.node).index(gather)
    nodes = [*graph.node[:at], rows, lookup, *graph.node[at + 1 :]]
    kept = [one for one in graph.initializer if one.name != gather.input[0]]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, shape])
    save_graph(model, graph_file)
    return True


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
