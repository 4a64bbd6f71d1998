"""A sentence encoder as one ONNX graph: text ids in, unit-length embeddings out. Run as a child process.

Pooling and normalisation are in the graph, so whoever reads ``sentence_embedding`` needs no more than the
tokenizer. int8 is onnxruntime's dynamic quantization: weights by output channel, activations as they come, after
:mod:`compress.smooth_encoder`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.calibration import calibration_windows, seen
from compress.encoder import (
    Embed,
    Encoder,
    drop_pooler,
    load_encoder,
    max_length,
    nearness,
    pooling_mode,
    texts_of,
)
from compress.recipe import Calibration
from compress.smooth_encoder import BLOCK, smooth
from everlearn.child import answer
from everlearn.progress import Progress

OPSET = 18


def export(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes model.onnx, tokenizer.json and config.json; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    longest = write_config(model_dir, directory)
    write_tokenizer(model_dir, directory)
    progress("loading the encoder", None)
    encoder, graph = load_encoder(model_dir), directory / "model.onnx"
    made: dict[str, Any] = {}
    if request["precision"] == "int8":
        chosen = Calibration.model_validate(request["calibration"])
        made = export_int8(model_dir, graph, chosen, progress)
    else:
        progress("exporting the graph", None)
        trace(encoder, graph)
    progress("measuring", None)
    near = nearness(session_embed(graph), encoder.embed, model_dir)
    metrics = {**near, "dimensions": encoder.body.config.hidden_size}
    return {"opset": OPSET, "max_length": longest, "metrics": metrics, **made}


def export_int8(model_dir: Path, graph: Path, calibration: Calibration, progress: Progress) -> dict[str, Any]:
    """Smooths, traces and quantizes an encoder; returns what a bundle says of that."""
    progress("finding out what 8 bits cost each layer", None)
    encoder = load_encoder(model_dir)
    drop_pooler(encoder)
    windows = calibration_windows(calibration, model_dir / "tokenizer.json")
    smoothed, wanted = smooth(encoder, texts_of(windows.reshape(-1), model_dir))
    progress("exporting the graph", None)
    trace(encoder, graph)
    progress("quantizing", None)
    by_blocks = quantize(graph, wanted)
    return {"smoothed": smoothed, "by_blocks": by_blocks, "calibration_seen": seen(windows)}


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
    """model.onnx with free batch and sequence.

    Attention is spelt out: torch's own would bring a test for rows that are masked altogether, in each layer, and it
    takes as long as a product.
    """
    import torch

    encoder.body.set_attn_implementation("eager")
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


def quantize(graph: Path, by_blocks: Sequence[str]) -> list[str]:
    """Weights and embeddings to int8 in place. ``by_blocks``: the layers with a scale for each block of each token.

    Returns those of them that are: a product that the graph calls otherwise is rounded as all others.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = graph.with_name("prepared.onnx"), graph.with_name("quantized.onnx")
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    found = compute_by_blocks(prepared, by_blocks) if by_blocks else []
    quantize_dynamic(str(prepared), str(result), per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()
    result.replace(graph)
    return found


def compute_by_blocks(graph: Path, layers: Sequence[str]) -> list[str]:
    """Makes the products of ``layers`` MatMulNBits of 8 bits, in place; returns those whose product was found."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger().setLevel(logging.WARNING)  # it would tell of every node
    model = onnx.load(graph)
    products = {node.name for node in model.graph.node if node.op_type == "MatMul"}
    found = [name for name in layers if product_of(name) in products]
    if found:
        blocks = MatMulNBitsQuantizer(
            model,
            bits=8,
            block_size=BLOCK,
            is_symmetric=True,
            accuracy_level=4,
            nodes_to_exclude=sorted(products - {product_of(name) for name in found}),
        )
        blocks.process()
        blocks.model.save_model_to_file(str(graph))
    return found


def product_of(layer: str) -> str:
    """How :func:`trace` calls the node that multiplies by a linear layer's weights."""
    return re.sub(r"\.(?=\D)", "/", f"/body.{layer}.MatMul")


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
