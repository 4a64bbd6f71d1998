"""One ONNX decoder: GPTQ where asked, onnxruntime-genai's model builder, and the price. Run as a child process.

One child does all three, so that torch and the model load once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure_decoder import measure_export
from compress.slim_graph import slim
from compress.tied_embedding import share_embedding
from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress

if TYPE_CHECKING:
    from compress.gptq import Quantized


def build(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Exports ``model_dir`` to ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises Unsupported where the builder, or GPTQ, does not take the model.
    """
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    progress("loading torch", None)
    made: dict[str, Any] = {}
    matrices: dict[str, Quantized] = {}
    wide_head = request["precision"] == "int4" and request["head_bits"] == 8
    if request["precision"] == "int4" and (request["weights"] == "gptq" or request["wide_share"]):
        matrices, chosen = quantize(model_dir, request, progress)
        made |= chosen
    elif wide_head:
        progress("rounding the output layer", None)
        matrices = rounded_head(model_dir)
    made["builder"] = build_graph(request, progress)
    graph = directory / "model.onnx"
    if matrices:
        from compress.carry import carry

        progress("carrying the weights into the graph", None)
        carry(graph, matrices)
    if request["tied"] and (wide_head or request["precision"] == "int8"):
        progress("sharing the embedding with the output layer", None)
        if not share_embedding(graph) and wide_head:
            raise Unsupported("this graph's embedding is not recognised; head_bits: 4 builds it")
    progress("writing the graph", None)
    slim(graph, json.loads((model_dir / "config.json").read_text()))
    return {"made": made, "compared": measure_export(model_dir, directory, request["tokens"], progress)}


def quantize(
    model_dir: Path, request: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Quantized], dict[str, Any]]:
    """The matrices by module name; which tokens they were made from, and which of them have 8 bits."""
    import torch

    from compress.calibration import calibration_windows, seen
    from compress.gptq import layers_in_blocks, quantize_model, round_model
    from compress.recipe import Calibration
    from compress.sensitivity import hurt_most, stacked, weights_in_int4
    from train.evaluate import load_causal_lm

    chosen = Calibration.model_validate(request["calibration"])
    windows = calibration_windows(chosen, model_dir / "tokenizer.json")
    ids = torch.from_numpy(windows)
    model = load_causal_lm(model_dir)
    head = model.get_output_embeddings()
    linear = {name: module for module, name in layers_in_blocks(model).items()}
    bits = {name: request["head_bits"] for name, module in linear.items() if module is head}
    made: dict[str, Any] = {"calibration_seen": seen(windows)}
    if request["wide_share"]:
        groups = stacked([name for name, module in linear.items() if module is not head])
        made["wide"] = hurt_most(
            model, ids, groups, weights_in_int4, request["wide_share"],
            lambda done, total: progress("measuring each layer", done / total),
        )  # fmt: skip
        bits |= {name: 8 for group in made["wide"] for name in groups[group]}
    if request["weights"] == "rtn":
        return round_model(model, bits=bits), made
    progress("quantizing", 0.0)
    matrices = quantize_model(model, ids, lambda done, total: progress("quantizing", done / total), bits=bits)
    return matrices, made


def rounded_head(model_dir: Path) -> dict[str, Quantized]:
    """The output layer alone, at 8 bits; the builder rounds the others."""
    from compress.gptq import layers_in_blocks, round_to_nearest
    from train.evaluate import load_causal_lm

    model = load_causal_lm(model_dir)
    head = model.get_output_embeddings()
    return {layers_in_blocks(model)[head]: round_to_nearest(head.weight.detach(), 8)}


def build_graph(request: Mapping[str, Any], progress: Progress) -> str:
    """Runs the builder; returns its name and version."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    progress("loading the builder", None)
    import onnxruntime_genai
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    where = (
        "",
        request["model_dir"],
        request["directory"],
        request["precision"],
        "cpu",
        request["cache_dir"],
    )
    progress(f"building the {request['precision']} graph", None)
    try:
        options = parse_extra_options(*where, request["options"])
        create_model(*where, **options)
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise Unsupported(f"onnxruntime-genai's builder does not take this model: {error}") from error
    return f"onnxruntime-genai {onnxruntime_genai.__version__}"


if __name__ == "__main__":
    answer(build)
