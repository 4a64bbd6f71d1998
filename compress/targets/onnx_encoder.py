"""An encoder as one ONNX graph: text ids in, unit-length embeddings or the logits of its head out. Run as a child process.

Pooling and normalisation are in the graph, so whoever reads ``sentence_embedding`` needs no more than the
tokenizer. int8 is onnxruntime's dynamic quantization: weights by output channel, activations as they come, after
:mod:`compress.quantize.smooth_encoder`. Weights keep to 7 bits: where a CPU has no instruction for products of 8 bits (x86
without VNNI), onnxruntime adds two of them in 16 bits, and 2 * 255 * 127 is more than fits there; 2 * 255 * 64 is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.headed_encoder import (
    HeadedEncoder,
    Predict,
    compare_predictions,
    is_multi_label,
    load_headed,
)
from compress.measure.parity import Drifted
from compress.quantize.calibration import calibration_windows, seen
from compress.quantize.smooth_encoder import smooth
from compress.recipe import Calibration
from compress.sentence_encoder import (
    Embed,
    Encoder,
    drop_pooler,
    embedding_similarity,
    load_encoder,
    max_length,
    pooling_mode,
    texts_of,
    whole_texts,
)
from everlearn.bundles.tasks import Task
from everlearn.cpu_features import make_exact
from everlearn.processes.child import answer
from everlearn.progress import Progress

OPSET = 18
PROJECTION = "/projection/"
"""How the layer is called that ends a tower of :mod:`compress.image_text`."""
SAME_GRAPH = 0.9999
"""Least cosine of embeddings of one model in float32; 0.999999 is seen."""
SAME_LOGITS = 0.001
"""How far logits of one model in float32 may be apart, as a share of the largest one; 0.00001 is seen."""


def build_onnx_encoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes model.onnx, tokenizer.json and config.json; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    task: Task = request["task"]
    longest = write_config(model_dir, directory, task)
    write_tokenizer(model_dir, directory)
    progress("loading the encoder", None)
    encoder, graph = load(model_dir, task), directory / "model.onnx"
    made: dict[str, Any] = {}
    if request["precision"] == "int8":
        chosen = Calibration.model_validate(request["calibration"])
        made = export_int8(model_dir, graph, chosen, task, progress)
    else:
        progress("exporting the graph", None)
        trace(encoder, graph)
        refuse_another_graph(graph, model_dir, task)
    progress("measuring", None)
    return {"opset": OPSET, "max_length": longest, "metrics": measure(encoder, graph, model_dir), **made}


def load(model_dir: Path, task: Task) -> Encoder | HeadedEncoder:
    """The encoder of a task."""
    return load_encoder(model_dir) if task == "embed" else load_headed(model_dir, task)


def export_int8(
    model_dir: Path, graph: Path, calibration: Calibration, task: Task, progress: Progress
) -> dict[str, Any]:
    """Smooths, traces and quantizes an encoder; returns what a bundle says of that."""
    progress("finding out what 8 bits cost each layer", None)
    encoder = load(model_dir, task)
    if isinstance(encoder, Encoder):
        drop_pooler(encoder)
    windows = calibration_windows(calibration, model_dir / "tokenizer.json")
    smoothed, by_token = smooth(encoder, batches_of(encoder, texts_of(windows.reshape(-1), model_dir)))
    progress("exporting the graph", None)
    trace(encoder, graph)
    refuse_another_graph(graph, model_dir, task)
    progress("quantizing", None)
    quantize(graph, encoder.rounded)
    return {"smoothed": smoothed, "by_token": by_token, "calibration_seen": seen(windows)}


def batches_of(encoder: Any, texts: Iterable[Tensor]) -> list[tuple[Tensor, ...]]:
    """Whole texts, int64 (texts, seq) each, as inputs in the order of the encoder's ``inputs``."""
    feeds = [whole_texts(ids) for ids in texts]
    return [tuple(torch.from_numpy(one[name]) for name in encoder.inputs) for one in feeds]


def measure(encoder: Encoder | HeadedEncoder, graph: Path, model_dir: Path) -> dict[str, Any]:
    """How near the graph is to torch: its embeddings, or its predictions."""
    if isinstance(encoder, Encoder):
        near = embedding_similarity(session_embed(graph), encoder.embed, model_dir)
        return {**near, "dimensions": encoder.body.config.hidden_size}
    multi_label = is_multi_label(encoder.body.config.to_dict())
    return compare_predictions(
        session_predict(graph, encoder.outputs), encoder.predict, model_dir, encoder.task, multi_label
    )


def write_config(model_dir: Path, directory: Path, task: Task) -> int:
    """The parent's config.json with ``max_length``: the tokens that a text is cut to, or may have."""
    config = json.loads((model_dir / "config.json").read_text())
    limit = max_length(model_dir)
    config["max_length"] = limit
    if task == "embed":
        config |= {"pooling": pooling_mode(model_dir), "normalized": True}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return limit


def write_tokenizer(model_dir: Path, directory: Path) -> None:
    """tokenizer.json without the fixed padding and truncation some models ship: the engine decides both."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)


def trace(encoder: Encoder | HeadedEncoder, graph: Path) -> None:
    """model.onnx with free batch and sequence.

    Attention is spelt out: torch's own would bring a test for rows that are masked altogether, in each layer, and it
    takes as long as a product.
    """
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
            output_names=list(encoder.outputs),
            dynamic_axes={**axes, **{name: dict(free) for name, free in encoder.outputs.items()}},
            opset_version=OPSET,
            dynamo=False,
        )


def refuse_another_graph(graph: Path, model_dir: Path, task: Task = "embed") -> None:
    """Raises Drifted where ``graph``, before anything in it is rounded, computes otherwise than torch."""
    near = measure(load(model_dir, task), graph, model_dir)
    if task == "embed":
        least = near["cosine_min"]
        right = least >= SAME_GRAPH
        found = f"an embedding of the graph in float32 has cosine {least:.4f} with torch's; at least {SAME_GRAPH} is asked"
    else:
        apart, limit = near["logits_difference"], SAME_LOGITS * max(1.0, near["logits_range"])
        right = apart <= limit
        found = (
            f"a logit of the graph in float32 is {apart:.4f} from torch's; at most {limit:.4f} is accepted"
        )
    if not right:
        raise Drifted(
            f"{found}, so it is not this model. Nothing was registered; docs/supported-architectures.md lists what works"
        )


def quantize(graph: Path, rounded: str = "") -> None:
    """The weights of products to 7 bits, the embeddings, which nothing multiplies, to 8; in place.

    ``rounded``: of layers whose names begin so alone.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = graph.with_name("prepared.onnx")
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    kinds = {"per_channel": True, "weight_type": QuantType.QInt8}
    products = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "MatMul"]
    ours = "/body/" + rounded.replace(".", "/")
    head = [
        name for name in products if name.startswith(("/body/", PROJECTION)) and not name.startswith(ours)
    ]
    only = {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": head}
    quantize_dynamic(prepared, graph, reduce_range=True, **only, **kinds)
    graph.replace(prepared)
    quantize_dynamic(prepared, graph, op_types_to_quantize=["Gather"], **kinds)
    prepared.unlink()


def session_embed(graph: Path, threads: int = 0) -> Embed:
    """What onnxruntime makes of ``graph``; 0 threads are as many as there are cores."""
    predict = session_predict(graph, ["sentence_embedding"], threads)
    return lambda feeds: predict(feeds)[0]


def session_predict(graph: Path, outputs: Iterable[str], threads: int = 0) -> Predict:
    """The ``outputs`` of ``graph``, by name, as onnxruntime computes them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    make_exact(options)
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names, wanted = [one.name for one in session.get_inputs()], list(outputs)

    def predict(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(one) for one in session.run(wanted, {name: feeds[name] for name in names})]

    return predict


if __name__ == "__main__":
    answer(build_onnx_encoder)
