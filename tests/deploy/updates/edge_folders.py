"""Edge folders small enough to make in a moment: real graphs with their weights beside them, as the exporter lays them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

VOCABULARY, HIDDEN = 2048, 256
PROMPTS = ([1, 2, 3], [7, 300, 41, 5])


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """INT8 matrices and their scales."""
    rng = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, HIDDEN), "middle": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCABULARY)}
    made: dict[str, np.ndarray] = {
        f"{name}.codes": np.clip(rng.normal(0, 30, shape), -127, 127).astype(np.int8)
        for name, shape in shapes.items()
    }
    return made | {f"{name}.scale": np.array(0.004 * (1 + at), np.float32) for at, name in enumerate(shapes)}


def lesson(before: dict[str, np.ndarray], seed: int, share: float = 0.01) -> dict[str, np.ndarray]:
    """The same weights, a share of the codes one step away."""
    rng = np.random.default_rng(seed)
    after = dict(before)
    for name, codes in before.items():
        if name.endswith(".codes"):
            moved = (rng.random(codes.shape) < share) & (np.abs(codes) < 127)
            after[name] = codes + moved * rng.choice(np.array([-1, 1], np.int8), codes.shape)
    return after


def write_edge_folder(
    folder: Path,
    tensors: dict[str, np.ndarray],
    version: int = 1,
    target: str = "linux-x64",
    wrong_by: float = 0.0,
) -> Path:
    """Writes an edge folder; ``wrong_by``: how far the logits that its manifest expects are from those it computes."""
    folder.mkdir(parents=True)
    spans, at = [], 0
    with (folder / "weights-000.bin").open("wb") as file:
        for name, values in tensors.items():
            if values.nbytes > 1024:
                file.write(bytes(-at % 64))
                at += -at % 64
                spans.append({"name": name, "offset": at, "bytes": values.nbytes})
                file.write(values.tobytes())
                at += values.nbytes
    onnx.save(graph(tensors, {one["name"]: one for one in spans}), folder / "model.onnx")
    (folder / "tokenizer.json").write_text(
        json.dumps({"vocabulary": [f"token {n}" for n in range(VOCABULARY)]})
    )
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    files = sorted(one.name for one in folder.iterdir())
    manifest: dict[str, Any] = {
        "format": "everlearn-edge/1", "model": "tiny", "version": version,
        "digest": hashlib.sha256(f"bundle {version}".encode()).hexdigest(), "task": "generate", "target": target,
        "form": "int8-dynamic", "runtime": {"name": "onnxruntime", "version": onnxruntime.__version__},
        "files": [listed(folder / one) for one in files], "tensors": {"weights-000.bin": spans},
        "probes": [probe(session, ids, wrong_by) for ids in PROMPTS], "bound": 0.01,
        "graph": {
            "layers": 0, "kv_heads": 1, "head_size": 1, "vocabulary": VOCABULARY, "context": 64, "hidden": HIDDEN,
            "cache": "float32",
        },
        "download_bytes": sum((folder / one).stat().st_size for one in files), "memory_bytes": 10**8,
        "memory_is": "estimated",
    }  # fmt: skip
    (folder / "edge.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    return folder


def graph(tensors: dict[str, np.ndarray], spans: dict[str, Any]) -> onnx.ModelProto:
    initializers = []
    for name, values in tensors.items():
        kind = TensorProto.INT8 if values.dtype == np.int8 else TensorProto.FLOAT
        made = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        if name in spans:
            made.data_location = TensorProto.EXTERNAL
            where = {
                "location": "weights-000.bin",
                "offset": spans[name]["offset"],
                "length": spans[name]["bytes"],
            }
            for key, value in where.items():
                made.external_data.add(key=key, value=str(value))
        else:
            made.raw_data = values.tobytes()
        initializers.append(made)
    nodes = [
        helper.make_node("DequantizeLinear", [f"{name}.codes", f"{name}.scale"], [name])
        for name in ("embedding", "middle", "head")
    ]
    nodes += [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "middle"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", VOCABULARY])]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def probe(session: Any, ids: list[int], wrong_by: float) -> dict[str, Any]:
    feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    logits = session.run(["logits"], feeds)[0][0, -1]
    top = [int(one) for one in np.argsort(-logits)[:8]]
    return {
        "token_ids": ids,
        "top_ids": top,
        "top_logits": [round(float(logits[one]) + wrong_by, 5) for one in top],
    }


def listed(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    return {"path": file.name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
