"""A run beside the registry: which folder a command means, which version of its base, and what came of it.

A name such as ``tiny`` or ``tiny@champion`` is another version tomorrow. A run takes the one that the name stands
for when it begins, and goes on with that one until it is finished.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from everlearn.bundles.bundle import BundleManifest, write_bundle
from everlearn.bundles.contents import check_name
from everlearn.bundles.durable import write_file
from everlearn.bundles.reference import parse_reference
from everlearn.bundles.safetensors_header import count_parameters
from everlearn.errors import ConfigError, Conflict, Corrupt, NotFound
from everlearn.progress import Progress
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from train.launch import RUN, OnStep, Outcome, begun, launch, read_written, refuse_other_run
from train.recipe import TrainRecipe, deciding
from train.recipe_data import folder_of, with_models
from train.runs.claim import claimed, refuse_inside
from train.runs.identity import Contents, contents_of, contents_read, run_diff

REGISTERED = "registered.json"
RUN_FILES = (
    *("outcome.json", "steps.jsonl", "log.txt", "data", "tokenizer", "model", "checkpoints", "tensorboard"),
    *(REGISTERED, RUN),
)
"""What a run writes: nothing else is removed with it."""


@dataclass(frozen=True)
class Run:
    """``model``: what the result is called. ``says``: what a person should hear of the base."""

    folder: Path
    model: str
    base: Version | None
    recipe: TrainRecipe
    contents: Contents
    says: str = ""

    @property
    def request(self) -> dict[str, Any]:
        """What ``train.runs.identity`` compares, as run.json holds it."""
        base = {"ref": self.base.ref, "digest": self.base.digest} if self.base else None
        return {"recipe": self.recipe.model_dump(mode="json"), "contents": self.contents, "base": base}


def find_run(
    registry: Registry, runs: Path, recipe: TrainRecipe, contents: Contents, run_dir: Path | None
) -> Run:
    """The run that a command means: one begun with the same recipe and contents, or a new one.

    Raises NotFound for a base that is not here, ConfigError for a model without a name, and Conflict where the
    version that a run was begun with is gone.
    """
    base = registry.weights(recipe.base) if recipe.base else None
    model = recipe.name or (base.model if base else "")
    if not model:
        raise ConfigError("the recipe needs a name for the model it makes from scratch", param="name")
    check_name(model, "a model's name")
    if run_dir:
        refuse_inside(run_dir, recipe.data.places)
    if base and recipe.base and not isinstance(parse_reference(recipe.base).version, int):
        folders = [run_dir] if run_dir else sorted(runs.glob(f"{glob.escape(model)}-*"))
        pinned = _pinned(registry, folders, recipe, contents, base)
        if pinned:
            return Run(pinned[0], model, pinned[1], recipe, contents, _says(recipe.base, pinned[1], base))
        says = f"base {recipe.base} → {base.ref}"
    else:
        says = ""
    said = [deciding(recipe.model_dump(mode="json")), base.digest if base else None]
    said += contents_read(contents)
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return Run(run_dir or runs / f"{model}-{key}", model, base, recipe, contents, says)


def train_registered(
    recipe: TrainRecipe,
    registry: Registry,
    runs: Path,
    run_dir: Path | None,
    *,
    hashing_view: Callable[[], AbstractContextManager[Progress]],
    training_view: Callable[[], AbstractContextManager[tuple[Progress, OnStep]]],
    say: Callable[[str], None],
) -> Version:
    """Trains ``recipe``, or goes on with its run, and registers the result; of a finished run, what came of it.

    ``run_dir``: by default the recipe's own folder in ``runs``. The views show progress while their context lasts.
    Raises as :func:`find_run`, :func:`already_registered` and ``train.launch.launch``.
    """

    def find(name: str) -> Path:
        return registry.path(registry.weights(name))

    found = with_models(recipe.data, find)
    made = recipe.architecture and recipe.architecture.with_tokenizer_of(partial(folder_of, find=find))
    recipe = recipe.model_copy(update={"data": found, "architecture": made})
    with hashing_view() as progress:
        contents = contents_of(recipe, progress)
    run = find_run(registry, runs, recipe, contents, run_dir)
    if run.says:
        say(run.says)
    with claimed(run.folder, wait_s=0):
        if done := already_registered(registry, run):
            say(f"This run is finished: {done.ref}. Another seed or --run-dir trains anew.")
            return done
        with training_view() as (progress, on_step):
            outcome = launch(
                recipe,
                model_dir=registry.path(run.base) if run.base else None,
                tokenizer_dir=None,
                run_dir=run.folder,
                progress=progress,
                on_step=on_step,
                contents=contents,
                base_ref=run.base.ref if run.base else None,
            )
        return register(registry, run, outcome)


def already_registered(registry: Registry, run: Run) -> Version | None:
    """What an earlier command made of this run, if it is still registered; else the folder is empty again.

    Raises Conflict where the folder holds another run, finished.
    """
    made, before = _made(run.folder), begun(run.folder)
    if not made or not before:
        return None
    refuse_other_run(run.folder, before, run.request)
    if parse_reference(made["ref"]).model != run.model:
        raise Conflict(
            f"{run.folder} holds this run, finished and named {made['ref']}: for {run.model}, choose another folder "
            "(--run-dir)",
            param="name",
        )
    try:
        version = registry.resolve(made["ref"])
        if version.digest == made["digest"]:
            return version
    except NotFound:
        pass
    for entry in map(run.folder.joinpath, RUN_FILES):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    return None


def register(registry: Registry, run: Run, outcome: Outcome) -> Version:
    """The result as the next version of its model, once; the weights then are in the registry alone."""
    config = json.loads((outcome.directory / "config.json").read_bytes())
    with registry.staging() as staging:
        shutil.copytree(outcome.directory, staging, dirs_exist_ok=True)
        manifest = write_bundle(
            staging,
            name=run.model,
            format="safetensors",
            task=run.recipe.objective_spec.task,
            architecture=next(iter(config.get("architectures") or [""])),
            parameters=count_parameters(staging),
            parent=run.base.digest if run.base else None,
            recipe={"train": outcome.recipe},
            metrics=outcome.metrics,
        )
        version = _added_before(registry, run.model, manifest) or registry.add(staging, run.model)
    said = {"ref": version.ref, "digest": version.digest}
    write_file(run.folder / REGISTERED, json.dumps(said).encode())
    shutil.rmtree(outcome.directory)
    return version


def _added_before(registry: Registry, model: str, manifest: BundleManifest) -> Version | None:
    """What a command added that was killed before it could write so."""
    same = {"files", "recipe", "metrics", "parent"}
    wanted = manifest.model_dump(include=same)
    try:
        versions = registry.versions(model)
    except NotFound:
        return None
    return next((one for one in versions if one.manifest.model_dump(include=same) == wanted), None)


def _pinned(
    registry: Registry, folders: Sequence[Path], recipe: TrainRecipe, contents: Contents, base: Version
) -> tuple[Path, Version] | None:
    """The folder and base of a run that was begun by this name: unfinished, or what ``base`` itself came of."""
    for folder in folders:
        try:
            before, made = begun(folder), _made(folder)
        except Corrupt:
            continue  # told when that folder is meant
        if not before or not before.get("base") or before["recipe"].get("base") != recipe.base:
            continue
        now = {"recipe": recipe.model_dump(mode="json"), "contents": contents, "base": before["base"]}
        if run_diff(before, now) or (made and made["digest"] != base.digest):
            continue
        ref = before["base"]["ref"]
        try:
            version = registry.weights(ref)
        except NotFound:
            version = None
        if version is None or version.digest != before["base"]["digest"]:
            raise Conflict(
                f"{folder} holds this run, begun with {ref}, which is no longer here: remove the folder to begin "
                f"anew with {base.ref}",
                param="base",
            )
        return folder, version
    return None


def _made(folder: Path) -> dict[str, str] | None:
    return read_written(folder / REGISTERED)


def _says(asked: str, pinned: Version, now: Version) -> str:
    line = f"base {asked} → {pinned.ref}"
    if pinned.digest != now.digest:
        line += (
            f", as when this run began; {asked} is {now.ref} by now: --set base={now.ref} trains from that"
        )
    return line
