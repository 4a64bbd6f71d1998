"""From a Hugging Face bundle to a smaller, measured one: ``everlearn compress MODEL --to int4-onnx``.

Decoders go through onnxruntime-genai's builder, so that phones and other tools read the same directory, or for
vLLM through llmcompressor; encoders through ``compress.targets.onnx_encoder``. A result that drifts from its parent is
not registered.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from compress.measure.parent_divergence import quality_metrics
from compress.measure.parity import (
    KERNELS,
    SAME_GRAPH,
    Drifted,
    refuse_another,
    refuse_distant_embeddings,
    refuse_drift,
    refuse_other_predictions,
)
from compress.parent_files import config_of, keep_tokenizer
from compress.quantize.methods import METHODS
from compress.recipe import CompressRecipe, recipe_from
from compress.targets.architectures import architecture_of, refuse_architecture
from compress.targets.table import FOR_ENCODERS, OTHER_CHILDREN, TARGETS, Target
from everlearn.bundles.bundle import BundleManifest, Task, write_bundle
from everlearn.bundles.bundle import read_manifest as read_bundle
from everlearn.bundles.decoder_config import is_tied
from everlearn.chat.stops import write_genai_config, write_generation_config
from everlearn.errors import Conflict, InvalidInput, Unavailable, Unsupported
from everlearn.processes.child import run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from train.evaluate.held_out_text import HELD_OUT_TOKENS


def export(settings: Settings, ref: str, recipe: CompressRecipe, progress: Progress = silent) -> Version:
    """Adds a compressed version of ``ref`` (a bare name: the weights of its champion) beside it.

    Raises NotFound, Unsupported where the model's kind cannot be built, Drifted where the result is not its
    parent any more.
    """
    registry = Registry(settings)
    parent = registry.weights(ref)
    progress("verifying the parent", None)
    parent_dir = registry.path(parent)
    needed = 2 * parent.manifest.size_bytes + logits_bytes(parent_dir, parent.task)
    refuse_full_disk(settings.directory("store"), needed)
    started = time.monotonic()
    former = former_of(registry, parent, recipe)
    scales_of = registry.path(former) if former else None
    with scratch_of(settings, parent, recipe) as scratch, registry.staging() as staging:
        made, metrics = build_export(
            parent_dir, staging, parent.task, recipe, progress, scratch=scratch, scales_of=scales_of
        )
        metrics["seconds"] = round(time.monotonic() - started, 1)
        progress("checking and hashing", None)
        write_export(staging, parent, made, metrics)
        return registry.add(staging, parent.model)


def build_export(
    parent_dir: Path,
    staging: Path,
    task: Task,
    recipe: CompressRecipe,
    progress: Progress = silent,
    calibration: Path | None = None,
    scratch: Path | None = None,
    scales_of: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fills ``staging`` with what ``recipe`` makes of ``parent_dir``, and registers nothing.

    ``calibration``: a text file or a token store to read instead of the recipe's own. ``scratch``: where quantized
    layers of a decoder are kept, and found again after an interruption. ``scales_of``: the bundle whose scales a recipe
    with ``scales_from: parent`` keeps.
    Returns the bundle's ``recipe`` and its metrics. The same inputs give the same model bytes.
    Raises Unsupported, Drifted.
    """
    refuse_architecture(config_of(parent_dir), task, recipe.to)
    if calibration:
        source = {"store" if calibration.is_dir() else "text": calibration}
        chosen = recipe.calibration.model_copy(update={"text": None, "store": None, **source})
        recipe = recipe.model_copy(update={"calibration": chosen})
    if task != "generate":
        made, metrics = export_encoder(parent_dir, staging, task, recipe, progress)
    elif TARGETS[recipe.to].format == "compressed-tensors":
        made, metrics = export_vllm(parent_dir, staging, recipe, progress)
    else:
        kept = scales_of if recipe.scales_from == "parent" else None
        made, metrics = export_decoder(parent_dir, staging, recipe, progress, scratch, kept)
    return {"export": {**recipe.model_dump(mode="json"), **made}}, metrics


def export_decoder(
    parent_dir: Path,
    staging: Path,
    recipe: CompressRecipe,
    progress: Progress,
    scratch: Path | None,
    scales_of: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds and measures a decoder; returns how it was made, and its metrics."""
    target = TARGETS[recipe.to]
    request = decoder_request(parent_dir, staging, recipe, scratch, scales_of)
    made = run_child(target.decoder_child, request, progress)["made"]
    measured = {name: request[name] for name in ("tokens", "reference", "carried", "far")}
    measured |= {"parent": str(parent_dir), "export": str(staging)}
    compared = run_child("compress.measure.parent_divergence", measured, progress)
    shutil.rmtree(request["cache_dir"], ignore_errors=True)
    keep_tokenizer(parent_dir, staging)
    write_genai_config(staging, parent_dir)
    what = f"{architecture_of(config_of(parent_dir))}: the {target.precision} graph"
    refuse_another(compared["graph"], SAME_GRAPH, f"{what} in float32")
    refuse_another(compared["kernels"], KERNELS, f"{what} as it is served")
    refuse_drift(compared["divergence"], target)
    metrics = quality_metrics(compared)
    metrics["same_weights"] = {name: round(max(0.0, compared[name]), 6) for name in ("graph", "kernels")}
    if scales_of:
        made["scales_of"] = read_bundle(scales_of).digest
    return {"precision": target.precision, "options": request["options"], **made}, metrics


def former_of(registry: Registry, parent: Version, recipe: CompressRecipe) -> Version | None:
    """The version whose scales ``recipe`` keeps: of its target, made of an ancestor, the nearest first.

    Of several, the newest of those that kept scales themselves: they are a line of updates.
    """
    if recipe.scales_from != "parent":
        return None
    for ancestor in registry.lineage(parent.ref)[1:]:
        made = [one for one in registry.versions(parent.model) if one.parent_digest == ancestor.digest]
        said = {one.version: one.manifest.recipe.get("export", {}) for one in made}
        same = [one for one in made if said[one.version].get("to") == recipe.to]
        if same:
            return max(same, key=lambda one: (said[one.version].get("scales_from") == "parent", one.version))
    return None


def decoder_request(
    parent_dir: Path,
    staging: Path,
    recipe: CompressRecipe,
    scratch: Path | None,
    scales_of: Path | None = None,
) -> dict[str, Any]:
    """What :mod:`compress.targets.onnx_decoder` is asked for."""
    target, cache = TARGETS[recipe.to], staging / "cache"
    return {
        "model_dir": str(parent_dir),
        "directory": str(staging),
        "cache_dir": str(cache),
        "scratch": str(scratch or cache / "matrices"),
        "precision": target.precision,
        "options": decoder_options(parent_dir, target),
        "method": asdict(METHODS[recipe.weights]),
        "head_bits": recipe.head_bits,
        "scales_of": str(scales_of) if scales_of else None,
        "tied": is_tied(config_of(parent_dir)),
        "high_precision_fraction": recipe.high_precision_fraction,
        "kv_cache": recipe.kv_cache,
        "calibration": recipe.calibration.model_dump(mode="json"),
        "tokens": HELD_OUT_TOKENS,
        "reference": str(cache / "reference.npy"),
        "carried": str(cache / ("reference.npy" if target.precision == "fp32" else "carried.npy")),
        "far": str(cache / "far.npz"),
    }


def decoder_options(model_dir: Path, target: Target) -> list[str]:
    """The builder's options. Of quantized models :mod:`compress.targets.quantized_graph` ties embedding and output layer.

    Layers that look back a window of tokens have whole caches as the others do: one kind of cache is served.
    """
    shared = is_tied(config_of(model_dir)) and target.precision == "fp32"
    said = {"shared_embeddings": shared, "fuse_mlp_gate_up": True, "windowed_kv_cache": False}
    return [*target.builder_options, *(f"{key}={str(value).lower()}" for key, value in said.items())]


def export_vllm(
    parent_dir: Path, staging: Path, recipe: CompressRecipe, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds and measures a decoder for vLLM; returns how it was made, and its metrics."""
    target = TARGETS[recipe.to]
    result = run_child(target.decoder_child, vllm_request(parent_dir, staging, recipe), progress)
    keep_tokenizer(parent_dir, staging)
    write_generation_config(staging)
    refuse_drift(result["compared"]["divergence"], target)
    return {"precision": target.precision, **result["made"]}, quality_metrics(result["compared"])


def vllm_request(parent_dir: Path, staging: Path, recipe: CompressRecipe) -> dict[str, Any]:
    """What :mod:`compress.targets.vllm` is asked for."""
    return {
        **recipe.model_dump(
            mode="json", include={"to", "group_size", "high_precision_fraction", "calibration"}
        ),
        "method": asdict(METHODS[recipe.weights]),
        "model_dir": str(parent_dir),
        "directory": str(staging),
        "tokens": HELD_OUT_TOKENS,
    }


def export_encoder(
    parent_dir: Path, staging: Path, task: Task, recipe: CompressRecipe, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds and measures an encoder, an encoder-decoder, or two towers; returns how it was made, and its metrics."""
    target = TARGETS[recipe.to]
    if target.encoder_child is None:
        raise Unsupported(f"what does not generate is exported as {' or '.join(FOR_ENCODERS)}")
    request = {
        "model_dir": str(parent_dir),
        "directory": str(staging),
        "task": task,
        "precision": target.precision,
        "calibration": recipe.calibration.model_dump(mode="json"),
    }
    made = run_child(OTHER_CHILDREN.get(task, target.encoder_child), request, progress)
    metrics = made.pop("metrics")
    if task in ("embed", "image_text"):
        refuse_distant_embeddings(metrics["cosine_min"], target)
    else:
        refuse_other_predictions(metrics["prediction_divergence"], target)
    return {"precision": target.precision, **made}, metrics


def write_export(
    staging: Path, parent: Version, made: Mapping[str, Any], metrics: Mapping[str, Any]
) -> BundleManifest:
    """bundle.json of the result, with its parent and its size."""
    format = TARGETS[made["export"]["to"]].format if parent.task == "generate" else "onnx"
    total = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    return write_bundle(
        staging,
        name=parent.model,
        format=format,
        task=parent.manifest.task,
        architecture=parent.manifest.architecture,
        parameters=parent.manifest.parameters,
        parent=parent.digest,
        recipe=made,
        metrics={"size_bytes": total, **metrics},
    )


def recipe_of(version: Version) -> CompressRecipe:
    """The recipe that made ``version``.

    Raises InvalidInput where no compression made it, and where it names what this installation does not have.
    """
    if "export" not in version.manifest.recipe:
        raise InvalidInput(
            f"{version.ref} was not made by everlearn compress: its bundle has no export recipe"
        )
    try:
        return recipe_from(version.manifest.recipe["export"])
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"{version.ref} was made by a recipe that this installation cannot read: {at}: {first['msg']}"
        ) from None


@contextmanager
def scratch_of(settings: Settings, parent: Version, recipe: CompressRecipe) -> Iterator[Path]:
    """Where quantized layers are kept until the version is there; the same export finds them again.

    They go, too, where it is refused: it would be refused again. An interruption, or a full disk, leaves them.
    Raises Conflict where another process makes the same.
    """
    key = hashlib.sha256(f"{parent.digest} {recipe.model_dump_json()}".encode()).hexdigest()[:12]
    scratch = settings.home / "runs" / f"quantize-{key}"
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(scratch / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict(f"{parent.ref} is being made into {recipe.to} by this recipe already") from None
    try:
        yield scratch
        shutil.rmtree(scratch)
    except (Drifted, Unsupported, InvalidInput):
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        lock.release()


def refuse_full_disk(folder: Path, needed_bytes: int) -> None:
    """Raises Unavailable where the disk of ``folder`` has less room."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise Unavailable(
            f"{free / 1e9:.1f} GB are free under {folder}; about {needed_bytes / 1e9:.1f} GB are needed. "
            "Nothing was begun"
        )


def logits_bytes(parent_dir: Path, task: Task) -> int:
    """What the parent predicts for the held-out text waits on disk for its export, in float32."""
    if task != "generate":
        return 0
    config = config_of(parent_dir)
    vocab = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)
    return 4 * HELD_OUT_TOKENS * vocab


def export_onnx(settings: Settings, ref: str, to: str, progress: Progress = silent) -> Version:
    """Adds ``ref`` made into ``to`` by the default recipe; see :func:`export`."""
    return export(settings, ref, CompressRecipe(to=to), progress)
