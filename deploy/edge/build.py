"""From a bundle to a folder for one kind of device: ``everlearn deploy edge MODEL --target web --out DIR``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from filelock import FileLock, Timeout

from deploy.edge.last_logits import keep_last_logits
from deploy.edge.manifest import (
    GRAPH,
    DecoderGraph,
    EdgeManifest,
    Generation,
    RuntimeUsed,
    describe,
    write_manifest,
)
from deploy.edge.probes import DEQUANTIZE_ONCE, decoder_probes
from deploy.edge.qdq import dequantize_once
from deploy.edge.targets import LOGITS, PAST, TARGETS
from deploy.edge.weights import move_weights
from everlearn.bundles.contents import read_json_object
from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.errors import Conflict, InvalidInput, Unsupported
from everlearn.privacy import share_folder
from everlearn.progress import Progress, silent
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
BOUND = 0.1


def build(settings: Settings, ref: str, target: str, out: Path, progress: Progress = silent) -> EdgeManifest:
    """Writes the folder ``out`` for ``target``; it is there whole, or not at all.

    Raises NotFound, Unsupported for a version that has no such form, Conflict where ``out`` is taken.
    """
    registry = Registry(settings)
    version = registry.resolve(ref)
    if version.format != "onnx-genai":
        raise Unsupported(
            f"{version.ref} is {version.format}, and {target} takes an ONNX version: "
            f"everlearn compress {version.model} --to int4-onnx"
        )
    progress("verifying the model", None)
    bundle = registry.path(version)
    with folder_for(out) as staging:
        manifest = fill(version, bundle, target, staging, progress)
        write_manifest(staging, manifest)
        share_folder(staging)
        sync_tree(staging)
        move_directory(staging, out)
    return manifest


def fill(version: Version, bundle: Path, target: str, staging: Path, progress: Progress) -> EdgeManifest:
    """Writes all files but edge.json; returns what that is to say."""
    of = TARGETS[target]
    form = of.forms[0]
    model = onnx.load(str(bundle / GRAPH), load_external_data=False)
    dequantize_once(model)
    keep_last_logits(model)
    parts = move_weights(model, bundle, staging, progress)
    (staging / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    for name in KEPT:
        if (bundle / name).is_file():
            shutil.copyfile(bundle / name, staging / name)
    config = read_json_object(bundle / "genai_config.json")
    graph = decoder_graph(model, config["model"], of.context)
    progress("computing the probes", None)
    probes = decoder_probes(staging, graph, DEQUANTIZE_ONCE)
    paths = [GRAPH, *(part.name for part in parts), *(name for name in KEPT if (staging / name).is_file())]
    files = [describe(staging, path) for path in paths]
    download = sum(one.bytes for one in files)
    return EdgeManifest(
        model=version.model,
        version=version.version,
        digest=version.digest,
        task=version.task,
        target=target,
        form=form,
        runtime=RuntimeUsed(name=of.runtime.name, version=of.runtime.version),
        files=files,
        tensors={part.name: part.spans for part in parts},
        graph=graph,
        generation=generation(config),
        probes=probes,
        bound=BOUND,
        download_bytes=download,
        memory_bytes=download,
        memory_is="estimated",
    )


def decoder_graph(model: onnx.ModelProto, config: dict[str, Any], context: int) -> DecoderGraph:
    """Shapes, as onnxruntime-genai's configuration and the graph itself say them."""
    decoder = config["decoder"]
    pasts = [one for one in model.graph.input if one.name.startswith(PAST)]
    (logits,) = (one for one in model.graph.output if one.name == LOGITS)
    cache = onnx.TensorProto.DataType.Name(pasts[0].type.tensor_type.elem_type).lower()
    return DecoderGraph(
        layers=decoder["num_hidden_layers"],
        kv_heads=decoder["num_key_value_heads"],
        head_size=decoder["head_size"],
        vocabulary=logits.type.tensor_type.shape.dim[2].dim_value,
        context=min(context, config["context_length"]),
        hidden=decoder["hidden_size"],
        cache={"float": "float32"}.get(cache, cache),
    )


def generation(config: dict[str, Any]) -> Generation:
    """Stops and sampling, as genai_config.json says them."""
    model, search = config["model"], config["search"]
    stops = model["eos_token_id"]
    sampling = {key: search[key] for key in ("temperature", "top_k", "top_p") if key in search}
    if not search.get("do_sample", False):
        sampling["temperature"] = 0.0
    return Generation(
        eos_token_ids=stops if isinstance(stops, list) else [stops],
        bos_token_id=model.get("bos_token_id"),
        **sampling,
    )


@contextmanager
def folder_for(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to fill and rename; what a killed process left there is cleared.

    Raises Conflict where ``out`` holds something, or another process is making it; InvalidInput without its parent.
    """
    out = out.absolute()
    if not out.parent.is_dir():
        raise InvalidInput(f"--out {out}: {out.parent} is no folder", param="out")
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists() or out.is_symlink():
        raise Conflict(f"--out {out} is there already: remove it, or name another folder", param="out")
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    staging = out.with_name(f".{out.name}.partial")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Conflict(f"another process is making {out}", param="out") from None
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
