"""What a decoder's file need not hold: onnxruntime makes it again while it loads, and then runs the very same graph.

Scales are written as float16 and cast (in float32, as the builder writes them, a block of 32 weights of 4 bits pays a
fifth of its bytes for its scale), and the tables of rotary positions are computed. Both are constants, which
onnxruntime folds before it lays out the weights: loading, memory and speed stay as they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ROUNDING = 2.0**-11
"""Of float16, relative."""
BESIDE_LARGEST = 1e-4
"""A scale may be off by this share of its matrix's largest: float16 is coarse below 6e-5."""
SAME_TABLE = 1e-5
"""Cosines may differ by this: positions times frequencies are rounded to float32."""


def slim(graph_file: Path, config: dict[str, Any]) -> None:
    """Rewrites ``graph_file``; ``config``: the parent's config.json. What would lose anything stays as it is."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph_file)
    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {node.input[2] for node in graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")}
    halves = {name: half for name in sorted(scales) if (half := halved(tensors[name])) is not None}
    nodes = [helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT) for name in halves]
    made: dict[str, np.ndarray] = {f"{name}.half": half for name, half in halves.items()}
    gone = set(halves)
    frequencies = rotary_frequencies(config, tensors)
    if frequencies is not None:
        nodes += rotary_nodes()
        positions = len(tensors["cos_cache"])
        made |= {
            "rotary.first": np.float32(0),
            "rotary.end": np.float32(positions),
            "rotary.step": np.float32(1),
            "rotary.column": np.array([-1, 1]),
            "rotary.frequencies": frequencies[None],
        }
        gone |= {"cos_cache", "sin_cache"}
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    nodes += list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in made.items())
    save_graph(model, graph_file)


def halved(scales: np.ndarray) -> np.ndarray | None:
    """float16 of float32, or None where a scale that matters would be rounded by more than float16 rounds."""
    if scales.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    largest = np.abs(scales).max(initial=0)
    apart = np.abs(half.astype(np.float32) - scales)
    return half if (apart <= ROUNDING * np.abs(scales) + BESIDE_LARGEST * largest).all() else None


def rotary_frequencies(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    """Radians a position, float32 (pairs,), where the tables are those of plain rotary positions (arXiv 2104.09864)."""
    if not {"cos_cache", "sin_cache"} <= tensors.keys():
        return None
    cosines, sines = tensors["cos_cache"], tensors["sin_cache"]  # (positions, pairs)
    positions, pairs = cosines.shape
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or 10000.0
    found = (1 / float(theta) ** (np.arange(pairs, dtype=np.float32) / np.float32(pairs))).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * found
    same = np.abs(np.cos(angles) - cosines).max() < SAME_TABLE
    return found if same and np.abs(np.sin(angles) - sines).max() < SAME_TABLE else None


def rotary_nodes() -> list[Any]:
    """Makes cos_cache and sin_cache: float32 (positions, pairs)."""
    from onnx import helper

    return [
        helper.make_node("Range", ["rotary.first", "rotary.end", "rotary.step"], ["rotary.positions"]),
        helper.make_node("Reshape", ["rotary.positions", "rotary.column"], ["rotary.rows"]),
        helper.make_node("Mul", ["rotary.rows", "rotary.frequencies"], ["rotary.angles"]),
        helper.make_node("Cos", ["rotary.angles"], ["cos_cache"]),
        helper.make_node("Sin", ["rotary.angles"], ["sin_cache"]),
    ]


def save_graph(model: Any, graph_file: Path) -> None:
    """Writes ``graph_file`` anew, its tensors in one file beside it."""
    import onnx

    data = graph_file.name + ".data"
    (graph_file.parent / data).unlink(missing_ok=True)
    onnx.save_model(model, graph_file, save_as_external_data=True, location=data, size_threshold=1024)
