"""A sentence encoder as one ONNX graph: text ids in, unit-length embeddings out. Run as a child process.

Pooling and normalisation are in the graph, so whoever reads ``sentence_embedding`` needs no more than the
tokenizer. int8 is onnxruntime's dynamic quantization: weights by output channel, activations as they come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.encoder import Embed, Encoder, load_encoder, max_length, nearness, pooling_mode
from everlearn.child import answer
from everlearn.progress import Progress

OPSET = 18


def export(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes model.onnx, tokenizer.json and config.json; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    longest = write_config(model_dir, directory)
    write_tokenizer(model_dir, directory)
    progress("loading the encoder", None)
    encoder = load_encoder(model_dir)
    progress("exporting the graph", None)
    graph = directory / "model.onnx"
    trace(encoder, graph)
    if request["precision"] == "int8":
        progress("quantizing", None)
        quantize(graph)
    progress("measuring", None)
    near = nearness(session_embed(graph), encoder.embed, model_dir)
    metrics = {**near, "dimensions": encoder.body.config.hidden_size}
    return {"opset": OPSET, "max_length": longest, "metrics": metrics}


def write_config(model_dir: Path, directory: Path) -> int:
    """The parent's config.json with ``max_length``: tokens a text is cut to."""
    config = json.loads((model_dir / "config.json").read_text())
    limit = max_length(model_dir)
    config |= {"max_length": limit, "pooling": pooling_mode(model_dir), "normalized": True}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return limit


def write_tokenizer(model_dir: Path, directory: Path) -> None:
    """tokenizer.json without the fixed padding and truncation some models ship: the engine decides both."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)


def trace(encoder: Encoder, graph: Path) -> None:
    """model.onnx with free batch and sequence."""
    import torch

    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "seq"} for name in encoder.inputs}
    with torch.inference_mode():
        torch.onnx.export(
            encoder,
            tuple(
                torch.zeros_like(example) if name == "token_type_ids" else example for name in encoder.inputs
            ),
            str(graph),
            input_names=encoder.inputs,
            output_names=["sentence_embedding"],
            dynamic_axes={**axes, "sentence_embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def quantize(graph: Path) -> None:
    """Weights and embeddings to int8 in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = graph.with_name("prepared.onnx"), graph.with_name("quantized.onnx")
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(result), per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()
    result.replace(graph)


def session_embed(graph: Path, threads: int = 0) -> Embed:
    """What onnxruntime makes of ``graph``; 0 threads are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def embed(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        (embeddings,) = session.run(["sentence_embedding"], {name: feeds[name] for name in names})
        return np.asarray(embeddings)

    return embed


if __name__ == "__main__":
    answer(export)
