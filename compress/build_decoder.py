"""One ONNX decoder: GPTQ where asked, onnxruntime-genai's model builder, and the price. Run as a child process.

One child does all three, so that torch and the model load once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure_decoder import measure_export
from compress.tied_embedding import share_embedding
from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress

if TYPE_CHECKING:
    from compress.gptq import Int4


def build(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Exports ``model_dir`` to ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises Unsupported where the builder, or GPTQ, does not take the model.
    """
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    progress("loading torch", None)
    made: dict[str, Any] = {}
    matrices: dict[str, Int4] = {}
    if request["weights"] == "gptq":
        matrices, made["calibration_seen"] = quantize(model_dir, request["calibration"], progress)
    made["builder"] = build_graph(request, progress)
    graph = directory / "model.onnx"
    if request["precision"] == "int8" and "shared_embeddings=true" in request["options"]:
        progress("sharing the embedding with the output layer", None)
        share_embedding(graph)
    if matrices:
        from compress.carry import carry

        progress("carrying the weights into the graph", None)
        carry(graph, matrices)
    return {"made": made, "compared": measure_export(model_dir, directory, request["tokens"], progress)}


def quantize(
    model_dir: Path, calibration: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Int4], dict[str, Any]]:
    """The GPTQ matrices by module name, and which tokens they were made from."""
    import torch

    from compress.calibration import calibration_windows, seen
    from compress.gptq import quantize_model
    from compress.recipe import Calibration
    from train.evaluate import load_causal_lm

    windows = calibration_windows(Calibration.model_validate(calibration), model_dir / "tokenizer.json")
    progress("quantizing", 0.0)
    matrices = quantize_model(
        load_causal_lm(model_dir),
        torch.from_numpy(windows),
        lambda done, total: progress("quantizing", done / total),
    )
    return matrices, seen(windows)


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
