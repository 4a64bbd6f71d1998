"""``everlearn gguf MODEL FILE``: a model as a file for llama.cpp, which belongs to nobody's registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.export import refuse_full_disk
from compress.measure.parent_divergence import quality_metrics
from compress.parent_files import config_of
from compress.targets.architectures import refuse_architecture
from compress.targets.table import GGUF_CHILD
from everlearn.bundles.tasks import TASK_WORDS
from everlearn.errors import InvalidInput
from everlearn.processes.child import run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.evaluate.held_out_text import HELD_OUT_TOKENS


def export_gguf(
    settings: Settings, ref: str, file: Path, kind: str, progress: Progress = silent
) -> dict[str, Any]:
    """Writes ``ref`` as ``file``, its matrices as ``kind``; returns what it cost, measured on the file read back.

    Raises InvalidInput, Unsupported where llama.cpp has no such model or tokenizer, Unavailable for a full disk.
    """
    registry = Registry(settings)
    parent = registry.weights(ref)
    if parent.task != "generate":
        raise InvalidInput(
            f"{parent.ref} is {TASK_WORDS[parent.task]}; decoders are written as GGUF", param="ref"
        )
    if not file.absolute().parent.is_dir():
        raise InvalidInput(f"{file.absolute().parent} is no folder", param="file")
    refuse_full_disk(settings.directory("store"), 2 * parent.manifest.size_bytes)
    refuse_architecture(config_of(registry.path(parent)), parent.task, "gguf")
    with registry.staging() as staging:
        request = {
            "model_dir": str(registry.path(parent)),
            "file": str(file.absolute()),
            "type": kind,
            "scratch": str(staging),
            "tokens": HELD_OUT_TOKENS,
        }
        result = run_child(GGUF_CHILD, request, progress)
    return {"size_bytes": file.stat().st_size, **quality_metrics(result["compared"])}
