"""``everlearn compress MODEL --recipe plan.yaml``: prune, heal, then every target, each a version with what it cost.

A step that an interrupted run of the same plan finished is not done again: its version is known by its parent and
its recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from compress.distill.recipe import DistillRecipe, Student
from compress.distill.run import described, distill
from compress.export import export, recipe_of, refuse_full_disk
from compress.measure.compare import speed_of
from compress.measure.parent_divergence import quality_metrics
from compress.parent_files import config_of, keep_beside_weights
from compress.quantize.calibration import calibration_windows, seen
from compress.recipe import Calibration, CompressPlan, CompressRecipe, Prune
from compress.search import (
    SMALLEST,
    DecoderSizes,
    best_of,
    kept_trials,
    parse_target,
    prunings,
    without_pruning,
)
from compress.targets.architectures import refuse_architecture
from compress.targets.table import DEFAULT_TARGET, FOR_ENCODERS
from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.durable import write_file
from everlearn.bundles.safetensors_header import count_parameters
from everlearn.bundles.tasks import refuse_task
from everlearn.chat.stops import write_generation_config
from everlearn.errors import InvalidInput
from everlearn.processes.child import run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from train.evaluate.held_out_text import HELD_OUT_TOKENS
from train.runs.identity import contents_of_data

# Bytes that training holds for each of the weights': checkpoints with two moments in float32, and the one before.
TRAINING_FACTOR = 6
SPEED_TRIALS = 3
"""Sizes are tried so often for a speed: each time by what the last one fell short."""


def follow(
    settings: Settings, ref: str, plan: CompressPlan, progress: Progress = silent
) -> Iterator[Version]:
    """Each version that ``plan`` makes of ``ref``, when it is there; the unfinished rest goes on another time.

    Raises before any work NotFound and InvalidInput for the calibration set, Unavailable where the disk is full.
    """
    registry = Registry(settings)
    parent = registry.weights(ref)
    calibration_seen = refuse_early(settings, registry, parent, plan)
    if plan.target is not None:
        yield from reach(settings, registry, parent, plan, calibration_seen, progress)
        return
    at = parent
    if plan.prune:
        pruned = pruned_recipe(plan.prune, plan.calibration) | {"calibration_seen": calibration_seen}
        at = find_step(registry, parent, "prune", pruned) or prune(
            settings, parent.ref, plan.prune, plan.calibration, progress
        )
        yield at
    if plan.heal:
        recipe = DistillRecipe(
            name=parent.model,
            teacher=parent.ref,
            student=Student(model=at.ref),
            **plan.heal.model_dump(),
        )
        said = described(recipe, contents_of_data(recipe.data, progress))
        at = find_step(registry, at, "distill", said) or distill(settings, recipe, progress=progress)
        yield at
    for wanted in plan.recipes():
        yield find_or_export(settings, registry, at, wanted, calibration_seen, progress)


def reach(
    settings: Settings,
    registry: Registry,
    parent: Version,
    plan: CompressPlan,
    calibration_seen: dict[str, Any],
    progress: Progress,
) -> Iterator[Version]:
    """The versions on the way to ``plan.target``; the last one obeys it. Raises InvalidInput where none could."""
    assert plan.target is not None
    target = parse_target(plan.target)
    if target.size_bytes:
        limit = target.size_bytes
        yield from reach_size(
            settings, registry, parent, plan, calibration_seen, limit, plan.target, progress
        )
        return
    assert target.speedup
    wanted = target.speedup * tokens_per_s(registry, parent, progress)
    int8 = CompressRecipe(to="int8-onnx", calibration=plan.calibration)
    version = find_or_export(settings, registry, parent, int8, calibration_seen, progress)
    yield version
    reached = tokens_per_s(registry, version, progress)
    for _ in range(SPEED_TRIALS):
        if reached >= wanted:
            return
        limit = version.manifest.size_bytes * reached / wanted
        asked = f"{plan.target}, about {limit / 1e6:.1f} MB,"
        for version in reach_size(settings, registry, parent, plan, calibration_seen, limit, asked, progress):
            yield version
        reached = tokens_per_s(registry, version, progress)
    if reached < wanted:
        megabytes = version.manifest.size_bytes / 1e6
        raise InvalidInput(
            f"{version.ref}, of {megabytes:.1f} MB, misses {plan.target}, too: {reached:.0f} tokens/s of {wanted:.0f}",
            param="target",
        )


def tokens_per_s(registry: Registry, version: Version, progress: Progress) -> float:
    """Of one answer, decoded on the engine that serves this version here."""
    return speed_of(registry.path(version), version.format, progress)["decode_tokens_per_s"]


def reach_size(
    settings: Settings,
    registry: Registry,
    parent: Version,
    plan: CompressPlan,
    calibration_seen: dict[str, Any],
    limit: float,
    asked: str,
    progress: Progress,
) -> Iterator[Version]:
    """As :func:`reach`, for a number of bytes; ``asked`` is how errors call it."""
    parent_dir = registry.path(parent)
    shape = DecoderSizes.read(parent_dir)
    for option in without_pruning(shape, limit):
        wanted = CompressRecipe(**option.model_dump(), calibration=plan.calibration)
        version = find_or_export(settings, registry, parent, wanted, calibration_seen, progress)
        yield version
        if version.manifest.size_bytes <= limit:
            return
    tried = prunings(shape, limit)
    said = f"{parent.ref} has {shape.int4_bytes(SMALLEST) / 1e6:.1f} MB at 4 bits"
    if not tried:
        raise InvalidInput(f"{said}; no pruning brings it to {asked}", param="target")
    if plan.heal is None:
        raise InvalidInput(
            f"{said}: for {asked} something must go, and what is left must be healed. Name text to heal it on, "
            "heal.data.train, in a --recipe with the target",
            param="heal",
        )
    best = best_of(trials(settings, parent_dir, parent, plan, tried, progress), tried)
    heal = plan.heal.model_copy(update={"quantize_to": SMALLEST.to, "head_bits": SMALLEST.head_bits})
    rounded = SMALLEST.model_copy(update={"weights": "rtn"})  # it has learnt with its weights so rounded
    found = plan.model_copy(update={"target": None, "prune": best, "heal": heal, "targets": (rounded,)})
    yield from follow(settings, parent.ref, found, progress)


def trials(
    settings: Settings,
    parent_dir: Path,
    parent: Version,
    plan: CompressPlan,
    tried: dict[str, Prune],
    progress: Progress,
) -> dict[str, Any]:
    """What each pruning changes before any healing, measured once for a parent and a calibration set."""
    request: dict[str, Any] = {
        "parent": parent.digest,
        "calibration": plan.calibration.model_dump(mode="json"),
        "prunings": {name: one.model_dump(mode="json") for name, one in tried.items()},
    }
    file = kept_trials(settings.home / "runs", request)
    if not file.exists():
        found = run_child("compress.search", {**request, "model_dir": str(parent_dir)}, progress)["trials"]
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_file(file, json.dumps(found).encode())
    return json.loads(file.read_bytes())


def prune(
    settings: Settings,
    ref: str,
    wanted: Prune,
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> Version:
    """Adds a pruned version of ``ref``, with what it lost before any healing. Raises InvalidInput, Unsupported."""
    registry = Registry(settings)
    parent = registry.weights(ref)
    refuse_task(parent.ref, parent.task, ("generate", "embed"), "pruning")
    decoder = parent.task == "generate"
    parent_dir = registry.path(parent)
    calibration = calibration or Calibration()
    recipe = pruned_recipe(wanted, calibration)
    with registry.staging() as staging:
        request = {
            **recipe,
            "model_dir": str(parent_dir),
            "directory": str(staging),
            "tokens": HELD_OUT_TOKENS,
        }
        child = "compress.prune.prune_decoder" if decoder else "compress.prune.prune_encoder"
        result = run_child(child, request, progress)
        keep_beside_weights(parent_dir, staging)
        if decoder:
            write_generation_config(staging)
        write_bundle(
            staging,
            name=parent.model,
            format="safetensors",
            task=parent.task,
            architecture=parent.manifest.architecture,
            parameters=count_parameters(staging),
            parent=parent.digest,
            recipe={"prune": {**recipe, **result["made"]}},
            metrics=quality_metrics(result["compared"]) if decoder else result["compared"],
        )
        return registry.add(staging, parent.model)


def pruned_recipe(wanted: Prune, calibration: Calibration) -> dict[str, Any]:
    """What a pruned bundle says of how it was made, before anything was found out."""
    return {"prune": wanted.model_dump(mode="json"), "calibration": calibration.model_dump(mode="json")}


def find_step(registry: Registry, parent: Version, step: str, recipe: dict[str, Any]) -> Version | None:
    """The version that this step made of ``parent`` before."""
    for version in registry.versions(parent.model):
        said = version.manifest.recipe.get(step, {})
        same = all(said.get(key) == value for key, value in recipe.items())
        if version.parent_digest == parent.digest and said and same:
            return version
    return None


def find_or_export(
    settings: Settings,
    registry: Registry,
    parent: Version,
    recipe: CompressRecipe,
    calibration_seen: dict[str, Any],
    progress: Progress,
) -> Version:
    """The version that ``recipe`` makes of ``parent``, found again or made now."""
    return find_export(registry, parent, recipe, calibration_seen) or export(
        settings, parent.ref, recipe, progress
    )


def find_export(
    registry: Registry, parent: Version, recipe: CompressRecipe, calibration_seen: dict[str, Any]
) -> Version | None:
    """The version that ``recipe`` made of ``parent`` before, having read the same tokens if any."""
    for version in registry.versions(parent.model):
        said = version.manifest.recipe.get("export")
        if said is None or version.parent_digest != parent.digest:
            continue
        with suppress(InvalidInput):  # another recipe: it names a method that is not installed here
            if recipe_of(version) == recipe and said.get("calibration_seen") in (None, calibration_seen):
                return version
    return None


def refuse_early(
    settings: Settings, registry: Registry, parent: Version, plan: CompressPlan
) -> dict[str, Any]:
    """Raises what would otherwise be found out after hours; returns which tokens the calibration will read."""
    if plan.target:
        parse_target(plan.target)
    if parent.task == "embed":
        refuse_decoders_plan(plan, parent.ref)
    config = config_of(registry.path(parent))
    for to in [DEFAULT_TARGET] if plan.target else [target.to for target in plan.targets]:
        refuse_architecture(config, parent.task, to)
    calibration_seen = seen(calibration_windows(plan.calibration, registry.path(parent) / "tokenizer.json"))
    for file in (*plan.heal.data.train, *plan.heal.data.held) if plan.heal else ():
        if isinstance(file, Path) and not file.exists():
            raise InvalidInput(
                f"{file}: no such file, and the pruned model is to be healed on it", param="heal"
            )
    needed = parent.manifest.size_bytes * (TRAINING_FACTOR if plan.heal else 2)
    refuse_full_disk(settings.directory("store"), needed)
    return calibration_seen


def refuse_decoders_plan(plan: CompressPlan, ref: str) -> None:
    """Raises InvalidInput for what a plan asks of an encoder that only decoders have."""
    pruned, wrong = plan.prune, None
    if plan.target:
        wrong = ("target", "name layers to prune, and targets")
    elif pruned and not pruned.layers_alone:
        wrong = ("prune", "whole layers are taken out of it: prune by layers or drop")
    elif any(one.to not in FOR_ENCODERS for one in plan.targets):
        wrong = ("targets", f"it is made into {' or '.join(FOR_ENCODERS)}")
    if wrong:
        raise InvalidInput(f"{ref} is an encoder: {wrong[1]}", param=wrong[0])
