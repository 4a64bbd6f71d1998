"""``everlearn distill``: a recipe names a teacher, a student and the text; the student becomes a model of its own.

The run is a child process, :mod:`compress.distill.teach_decoder` or :mod:`compress.distill.teach_encoder`; started again
in the same folder it goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from compress.distill.recipe import DistillRecipe, refuse_decoders_options
from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.contents import check_name
from everlearn.bundles.durable import write_file
from everlearn.bundles.safetensors_header import count_parameters
from everlearn.bundles.tasks import refuse_task
from everlearn.errors import InvalidInput
from everlearn.processes.child import run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from train.recipe import deciding
from train.runs.claim import claimed, refuse_foreign, refuse_inside
from train.runs.identity import Contents, contents_of_data, contents_read

RUN = "distill.json"
"""The folder that has it is a distillation's."""


def distill(
    settings: Settings, recipe: DistillRecipe, run_dir: Path | None = None, progress: Progress = silent
) -> Version:
    """Trains the student in ``run_dir`` and adds it as the next version of ``recipe.name``.

    Without ``run_dir``, in a folder of the recipe and of what its files and models hold.
    Raises NotFound, InvalidInput (also where the loss diverged), ConfigError, and Conflict, also where another process
    works in that folder.
    """
    check_name(recipe.name, "a model's name")
    registry = Registry(settings)
    teacher = registry.weights(recipe.teacher)
    refuse_task(teacher.ref, teacher.task, ("generate", "embed"), "distillation")
    student = registry.weights(recipe.student.model) if recipe.student.model else None
    if student and student.task != teacher.task:
        raise InvalidInput(
            f"{student.ref} and {teacher.ref}: an encoder learns from an encoder, a decoder from a decoder",
            param="student.model",
        )
    if teacher.task == "embed":
        refuse_decoders_options(recipe, teacher.ref)
    if run_dir:
        refuse_inside(run_dir, recipe.data.places)
    contents = contents_of_data(recipe.data, progress)
    folder = run_dir or folder_of(settings, recipe, contents, teacher, student)
    progress(f"teacher {recipe.teacher} → {teacher.ref}", None)
    with claimed(folder, wait_s=0):
        refuse_foreign(folder, RUN)
        write_file(folder / RUN, json.dumps(described(recipe, contents), indent=1).encode())
        metrics = teach_in_child(registry, recipe, teacher, student, folder, progress)
        with registry.staging() as staging:
            shutil.copytree(folder / "model", staging, dirs_exist_ok=True)
            config = json.loads((staging / "config.json").read_bytes())
            write_bundle(
                staging,
                name=recipe.name,
                format="safetensors",
                task=teacher.task,
                architecture=config["architectures"][0],
                parameters=count_parameters(staging),
                parent=(student or teacher).digest,
                recipe={"distill": described(recipe, contents)},
                metrics=metrics,
            )
            return registry.add(staging, recipe.name)


def folder_of(
    settings: Settings, recipe: DistillRecipe, contents: Contents, teacher: Version, student: Version | None
) -> Path:
    """Where a distillation keeps its checkpoints unless told: the same recipe, texts and models go on there."""
    said = [deciding(recipe.model_dump(mode="json")), contents_read(contents)]
    said += [teacher.digest, student.digest if student else None]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return settings.home / "runs" / f"{recipe.name}-{key}"


def teach_in_child(
    registry: Registry,
    recipe: DistillRecipe,
    teacher: Version,
    student: Version | None,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Runs the child, which writes the student to ``folder/model``; returns its metrics."""
    request = {
        "recipe": recipe.model_dump(mode="json"),
        "teacher_dir": str(registry.path(teacher)),
        "student_dir": student and str(registry.path(student)),
        "dropped": student and dropped_of(student, teacher),
        "run_dir": str(folder),
    }
    child = (
        "compress.distill.teach_decoder" if teacher.task == "generate" else "compress.distill.teach_encoder"
    )
    return run_child(child, request, progress)


def dropped_of(student: Version, teacher: Version) -> list[int] | None:
    """Which of the teacher's layers a student that was pruned from it lacks; None for another one."""
    made = student.manifest.recipe.get("prune")
    return made.get("dropped", []) if made and student.parent_digest == teacher.digest else None


def described(recipe: DistillRecipe, contents: Contents) -> dict[str, Any]:
    """What a bundle tells of its distillation; the same again is the same distillation of the same models."""
    return {**recipe.model_dump(mode="json"), "contents": contents_read(contents)}
