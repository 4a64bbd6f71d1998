"""From a model to a folder in another runtime's format: ``everlearn deploy convert MODEL --to openvino --out DIR``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from compress.export import refuse_full_disk
from compress.parent_files import config_of, keep_tokenizer
from deploy.edge.build import folder_for
from deploy.edge.manifest import describe
from deploy.runtimes.environment import interpreter_for
from deploy.runtimes.table import BOUND, CONTEXT, RUNTIMES
from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.bundles.tasks import TASK_WORDS
from everlearn.errors import InvalidInput, Unsupported
from everlearn.memory import physical_bytes
from everlearn.privacy import share_folder
from everlearn.processes.child import run_child
from everlearn.progress import Progress, silent
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

MANIFEST = "runtime.json"
FORMAT = "everlearn-runtime/1"
FLOAT_BYTES = 4
COPIES = 4
"""Of the float32 weights, what a conversion holds in memory at its peak: torch's, the graph's, the file's, the runtime's."""
FLATBUFFER_BYTES = 2**31
KEPT = ("generation_config.json",)


def convert(
    settings: Settings,
    ref: str,
    to: str,
    out: Path,
    context: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the folder ``out``, whole or not at all; returns its manifest, with how long it took and how fast it runs.

    Raises Unsupported with what the runtime's converter says of the model, Unavailable where the runtime is not
    installed, Conflict where ``out`` is taken.
    """
    runtime = RUNTIMES[to]
    if context is not None and runtime.lengths == "any":
        raise InvalidInput(
            f"--context has no use for {to}: a text there may have any length", param="context"
        )
    registry = Registry(settings)
    version = registry.weights(ref)
    if version.task not in runtime.tasks:
        raise Unsupported(
            f"{version.ref} is {TASK_WORDS[version.task]}; {runtime.title} is offered for decoders",
            param="to",
        )
    interpreter = interpreter_for(to)
    with folder_for(out) as staging:
        progress("verifying the model", None)
        bundle = registry.path(version)
        refuse_unfit(version, bundle, to, staging)
        request = {
            "source": str(bundle),
            "out": str(staging),
            "task": version.task,
            "backend": runtime.backend,
            "context": context or (None if runtime.lengths == "any" else CONTEXT),
            "threads": os.cpu_count() or 1,
        }
        try:
            made = run_child("deploy.runtimes.child", request, progress, interpreter=interpreter)
        except Unsupported as refused:
            raise Unsupported(f"{version.ref} to {runtime.title}: {refused.message}", param="to") from None
        keep_tokenizer(bundle, staging)
        for name in KEPT:
            if (bundle / name).is_file():
                (staging / name).write_bytes((bundle / name).read_bytes())
        manifest = describe_folder(version, to, staging, made)
        content = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False)
        (staging / MANIFEST).write_text(content + "\n", encoding="utf-8")
        share_folder(staging)
        sync_tree(staging)
        move_directory(staging, out.absolute())
    return manifest | {key: made[key] for key in ("seconds", "tokens_per_s")}


def refuse_unfit(version: Version, bundle: Path, to: str, staging: Path) -> None:
    """Raises Unsupported or Unavailable before any work where the model cannot fit the runtime or this machine."""
    runtime = RUNTIMES[to]
    family = str(config_of(bundle).get("model_type"))
    if runtime.families is not None and family not in runtime.families:
        known = ", ".join(sorted(runtime.families))
        raise Unsupported(f"{version.ref} is of the family {family}; {runtime.title} has {known}", param="to")
    full = FLOAT_BYTES * (version.manifest.parameters or 0)
    if to == "litert" and full >= FLATBUFFER_BYTES:
        raise Unsupported(
            f"{version.ref} has {full / 1e9:.1f} GB in float32; a .tflite file holds at most 2 GiB",
            param="to",
        )
    if COPIES * full > physical_bytes():
        raise Unsupported(
            f"{version.ref} has {full / 1e9:.1f} GB in float32, and converting it takes {COPIES} times as much memory; "
            f"this machine has {physical_bytes() / 1e9:.1f} GB",
            param="to",
        )
    refuse_full_disk(staging, 2 * full)


def describe_folder(version: Version, to: str, folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """runtime.json: where the folder comes from, what runs it, and how near torch it is. The same for the same inputs."""
    runtime = RUNTIMES[to]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "task": version.task,
        "runtime": {"name": to, "packages": dict(runtime.packages)},
        "inputs": made["inputs"],
        "output": made["output"],
        "context": None if runtime.lengths == "any" else made["context"],
        "lengths": runtime.lengths,
        "bound": BOUND,
        "largest_difference": float(f"{made['difference']:.2g}"),
        "files": [describe(folder, name).model_dump() for name in names],
    }
