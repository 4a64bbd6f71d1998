"""A home with a small model of each task but chat and embeddings, ready to be served."""

from __future__ import annotations

from pathlib import Path

from compress.targets.onnx_encoder import build_onnx_encoder
from compress.targets.onnx_encoder_decoder import build_onnx_encoder_decoder
from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.tasks import Task
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import write_headed, write_t5

NAMES: dict[str, Task] = {
    "topics": "classify",
    "ranker": "score",
    "names": "token_classify",
    "finder": "question_answer",
    "writer": "text2text",
}


def add_headed(settings: Settings, scratch: Path) -> dict[str, Path]:
    """The directories of the float models by name. ``topics`` is left to be compressed when it is served."""
    registry, parents = Registry(settings), dict[str, Path]()
    for name, task in NAMES.items():
        parents[name] = scratch / name
        parents[name].mkdir()
        model = write_t5(parents[name]) if name == "writer" else write_headed(parents[name], task)
        if name == "topics":
            import_model(settings, str(parents[name]), name=name)
            continue
        with registry.staging() as staging:
            request = {"model_dir": str(parents[name]), "directory": str(staging), "precision": "fp32"}
            build = build_onnx_encoder_decoder if name == "writer" else build_onnx_encoder
            build({**request, "task": task}, silent)
            kind, size = type(model).__name__, model.num_parameters()
            write_bundle(staging, name=name, format="onnx", task=task, architecture=kind, parameters=size)
            registry.add(staging, name)
    return parents
