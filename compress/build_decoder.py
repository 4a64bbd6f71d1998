"""One run of onnxruntime-genai's model builder. Run as a child process, through ``everlearn.child``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.tied_embedding import share_embedding
from everlearn.child import answer
from everlearn.errors import Unsupported
from everlearn.progress import Progress


def build(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Exports ``model_dir`` to ``directory``. Raises Unsupported where the builder does not take the model."""
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
    if request["precision"] == "int8" and "shared_embeddings=true" in request["options"]:
        progress("sharing the embedding with the output layer", None)
        share_embedding(Path(request["directory"]) / "model.onnx")
    return {"builder": f"onnxruntime-genai {onnxruntime_genai.__version__}"}


if __name__ == "__main__":
    answer(build)
