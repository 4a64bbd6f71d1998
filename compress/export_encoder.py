"""A sentence encoder as one ONNX graph: text ids in, unit-length embeddings out. Run as a child process.

Pooling and normalisation are in the graph, so whoever reads ``sentence_embedding`` needs no more than the
tokenizer. int8 is onnxruntime's dynamic quantization: weights by output channel, activations as they come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress

OPSET = 18
# Short, long and unlike each other: the embeddings of both precisions are compared on them.
PROBE_WORDS = (4, 16, 64, 120)


def export(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes model.onnx, tokenizer.json and config.json; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    max_length = write_config(model_dir, directory)
    write_tokenizer(model_dir, directory)
    progress("loading the encoder", None)
    encoder, inputs = load_encoder(model_dir)
    progress("exporting the graph", None)
    graph = directory / "model.onnx"
    trace(encoder, inputs, graph)
    if request["precision"] == "int8":
        progress("quantizing", None)
        quantize(graph)
    progress("measuring", None)
    texts = probe_texts()
    return {"opset": OPSET, "max_length": max_length, "metrics": measure(encoder, inputs, directory, texts)}


def write_config(model_dir: Path, directory: Path) -> int:
    """The parent's config.json with ``max_length``: tokens a text is cut to."""
    config = json.loads((model_dir / "config.json").read_text())
    limit = int(config["max_position_embeddings"])
    if (model_dir / "sentence_bert_config.json").is_file():
        said = json.loads((model_dir / "sentence_bert_config.json").read_text()).get("max_seq_length")
        limit = min(limit, int(said or limit))
    pooling = pooling_mode(model_dir)
    config |= {"max_length": limit, "pooling": pooling, "normalized": True}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return limit


def pooling_mode(model_dir: Path) -> str:
    """``mean`` or ``cls``, as sentence-transformers' 1_Pooling says. Raises Unsupported for other modes."""
    file = model_dir / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    modes = json.loads(file.read_text())
    chosen = {name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or not chosen <= known.keys():
        raise Unsupported(f"the encoder pools by {sorted(chosen)}; mean and cls are exported")
    return known[chosen.pop()]


def write_tokenizer(model_dir: Path, directory: Path) -> None:
    """tokenizer.json without the fixed padding and truncation some models ship: the engine decides both."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)


def load_encoder(model_dir: Path) -> tuple[Any, list[str]]:
    """The model with pooling and normalisation as one module, and the names of its inputs."""
    import inspect

    import torch
    from transformers import AutoModel

    body = AutoModel.from_pretrained(
        model_dir, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    ).eval()
    takes_types = "token_type_ids" in inspect.signature(body.forward).parameters
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types else [])]
    mean = pooling_mode(model_dir) == "mean"

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            # tensors: int64 (batch, seq) each; returns float32 (batch, dim)
            given = dict(zip(inputs, tensors, strict=True))
            hidden = self.body(**given).last_hidden_state  # (batch, seq, dim)
            if mean:
                mask = given["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (batch, seq, 1)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            else:
                pooled = hidden[:, 0]
            return torch.nn.functional.normalize(pooled, dim=-1)

    return Encoder().eval(), inputs


def trace(encoder: Any, inputs: list[str], graph: Path) -> None:
    """model.onnx with free batch and sequence."""
    import torch

    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "seq"} for name in inputs}
    with torch.inference_mode():
        torch.onnx.export(
            encoder,
            tuple(torch.zeros_like(example) if name == "token_type_ids" else example for name in inputs),
            str(graph),
            input_names=inputs,
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


def probe_texts() -> list[str]:
    """Pieces of the held text, of several lengths."""
    from train.evaluate import held_text

    words = held_text().text.split()
    return [" ".join(words[start : start + count]) for count in PROBE_WORDS for start in range(0, 4000, 500)]


def measure(encoder: Any, inputs: list[str], directory: Path, texts: list[str]) -> dict[str, Any]:
    """Cosine similarity of each text's embedding with torch's; padded batches, as an engine sends them."""
    import numpy as np
    import onnxruntime
    import torch
    from tokenizers import Tokenizer

    limit = json.loads((directory / "config.json").read_text())["max_length"]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    cosines: list[float] = []
    for start in range(0, len(texts), 8):
        encoded = tokenizer.encode_batch(texts[start : start + 8])
        columns = {
            "input_ids": [item.ids for item in encoded],
            "attention_mask": [item.attention_mask for item in encoded],
            "token_type_ids": [item.type_ids for item in encoded],
        }
        feeds = {name: np.array(columns[name], dtype=np.int64) for name in inputs}  # (batch, seq) each
        (ours,) = session.run(["sentence_embedding"], feeds)  # (batch, dim), unit length
        with torch.inference_mode():
            theirs = encoder(*(torch.from_numpy(feeds[name]) for name in inputs)).numpy()
        cosines += (np.asarray(ours) * theirs).sum(-1).tolist()
    return {
        "cosine_mean": round(float(np.mean(cosines)), 5),
        "cosine_min": round(float(np.min(cosines)), 5),
        "texts": len(texts),
        "dimensions": int(theirs.shape[-1]),
    }


if __name__ == "__main__":
    answer(export)
