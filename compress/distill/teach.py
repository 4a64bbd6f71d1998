"""``everlearn distill``: a recipe names a teacher, a student and the text; the student becomes a model of its own.

The run is a child process; started again in the same folder it goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.recipe import Teaching
from everlearn.bundles.bundle import write_bundle
from everlearn.bundles.contents import check_name
from everlearn.bundles.durable import write_file
from everlearn.bundles.safetensors_header import count_parameters
from everlearn.errors import InvalidInput
from everlearn.processes.child import answer, run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from everlearn.settings_file import read_settings_file
from train.data.card import DataOptions
from train.recipe import Architecture, anchored, deciding, validate_recipe
from train.runs.claim import claimed, refuse_foreign, refuse_inside
from train.runs.identity import Contents, contents_of_data, contents_read

if TYPE_CHECKING:
    from compress.distill.kept_predictions import KeptPredictions
    from train.data.packing import Packer
    from train.data.store import TokenStore


RUN = "distill.json"
"""The folder that has it is a distillation's."""


class Student(BaseModel):
    """Some of the teacher's own layers, another model here with its tokenizer, or an architecture from scratch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int | None = Field(default=None, ge=1)
    model: str | None = None
    architecture: Architecture | None = None

    @model_validator(mode="after")
    def _one(self) -> Student:
        if sum(one is not None for one in (self.layers, self.model, self.architecture)) != 1:
            raise ValueError(
                "say one of layers, of the teacher's; model, one that is here; or architecture, from scratch"
            )
        return self


class DistillRecipe(Teaching):
    """``teacher`` is a model here."""

    name: str
    teacher: str
    student: Student


def read_distill_recipe(path: Path) -> DistillRecipe:
    """The recipe of a YAML file; its paths are relative to it. Raises ConfigError with line and nearest key."""
    file = read_settings_file(path)
    recipe = validate_recipe(DistillRecipe, file.values, file)
    return recipe.model_copy(update={"data": anchored(recipe.data, path.absolute().parent)})


def folder_of(
    settings: Settings, recipe: DistillRecipe, contents: Contents, teacher: Version, student: Version | None
) -> Path:
    """Where a distillation keeps its checkpoints unless told: the same recipe, texts and models go on there."""
    said = [deciding(recipe.model_dump(mode="json")), contents_read(contents)]
    said += [teacher.digest, student.digest if student else None]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return settings.home / "runs" / f"{recipe.name}-{key}"


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
    student = registry.weights(recipe.student.model) if recipe.student.model else None
    if student and student.task != teacher.task:
        raise InvalidInput(
            f"{student.ref} and {teacher.ref}: an encoder learns from an encoder, a decoder from a decoder",
            param="student.model",
        )
    if teacher.task == "embed":
        refuse_decoders_options(recipe, teacher.ref)
    if run_dir:
        refuse_inside(run_dir, (*recipe.data.train, *recipe.data.held))
    contents = contents_of_data(recipe.data, progress)
    folder = run_dir or folder_of(settings, recipe, contents, teacher, student)
    progress(f"teacher {recipe.teacher} → {teacher.ref}", None)
    with claimed(folder, wait_s=0):
        refuse_foreign(folder, RUN)
        write_file(folder / RUN, json.dumps(described(recipe, contents), indent=1).encode())
        metrics = taught(registry, recipe, teacher, student, folder, progress)
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


def taught(
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
    child = "compress.distill.teach" if teacher.task == "generate" else "compress.distill.teach_encoder"
    return run_child(child, request, progress)


def described(recipe: DistillRecipe, contents: Contents) -> dict[str, Any]:
    """What a bundle tells of its distillation; the same again is the same distillation of the same models."""
    return {**recipe.model_dump(mode="json"), "contents": contents_read(contents)}


OF_DECODERS = ("temperature", "weight", "divergence", "quantize_to", "head_bits", "keep_predictions")
OF_TEACHING = ("student", "hidden", "reconstruct_tokens", *OF_DECODERS)
"""What of a recipe decides a run beside the options of its loop."""


def refuse_decoders_options(recipe: DistillRecipe, teacher: str) -> None:
    """Raises InvalidInput for what is said of predictions where an encoder teaches."""
    if recipe.student.architecture is not None:
        raise InvalidInput(
            f"{teacher} is an encoder: its student has some of its layers, or is a model here",
            param="student.architecture",
        )
    for name in OF_DECODERS:
        if getattr(recipe, name) != Teaching.model_fields[name].default:
            raise InvalidInput(
                f"{name} is of predictions, and {teacher} is an encoder: it teaches its embeddings, and by hidden its "
                "last states",
                param=name,
            )


def texts_to_learn(
    recipe: DistillRecipe, teacher_dir: Path, run_dir: Path, progress: Progress
) -> tuple[TokenStore, TokenStore | None]:
    """What to learn from and what to measure on, prepared where the recipe names files.

    Raises InvalidInput where a store's tokens are another tokenizer's.
    """
    from train.data.prepare import prepare
    from train.data.tokenize import Tokens
    from train.run import open_stores, refuse_foreign_tokens

    if recipe.data.train:
        said = recipe.data.model_dump(include=set(DataOptions.model_fields))
        options = DataOptions(**{**said, "max_tokens": recipe.data.max_tokens or recipe.sequence_tokens})
        prepare(recipe.data.train, teacher_dir, run_dir / "data", options, progress, held=recipe.data.held)
    stores = open_stores(recipe, run_dir)  # pyright: ignore[reportArgumentType]
    refuse_foreign_tokens(stores, Tokens(teacher_dir).sha256)
    return stores


def teach(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: writes the student to ``run_dir/model`` and returns the metrics."""
    import torch

    from compress.distill.decoder_objective import Distillation, HiddenStates, counterparts
    from compress.distill.kept_predictions import KeptDistillation
    from compress.export import keep_tokenizer
    from compress.prune.pruning import evenly_spaced, with_layers
    from compress.quantize.quantize_aware import keep_rounded, round_in_training
    from everlearn.chat.stops import write_generation_config
    from train.data.packing import Packer
    from train.errors import Diverged
    from train.loop import fit
    from train.models.build import from_scratch
    from train.models.load import load_causal_lm
    from train.models.packed_rows import refuse_unfit
    from train.models.save import saved_dtype
    from train.objectives.logits import vocabulary
    from train.parallel.wrap import Group
    from train.run import base_digest, held_of, metrics_of

    recipe = validate_recipe(DistillRecipe, request["recipe"])
    teacher_dir, run_dir = Path(request["teacher_dir"]), Path(request["run_dir"])
    stores = texts_to_learn(recipe, teacher_dir, run_dir, progress)
    progress("loading the teacher", None)
    teacher = load_causal_lm(teacher_dir)
    torch.manual_seed(recipe.seed)
    depth, kept = teacher.config.num_hidden_layers, None
    if request["student_dir"]:
        student_dir = Path(request["student_dir"])
        refuse_other_tokenizer(teacher_dir, student_dir)
        student = load_causal_lm(student_dir)
        if request["dropped"] is not None:
            kept = [at for at in range(depth) if at not in request["dropped"]]
    elif recipe.student.layers is not None:
        kept = evenly_spaced(recipe.student.layers, depth)
        student = with_layers(teacher, kept)
    else:
        assert recipe.student.architecture
        student = from_scratch(recipe.student.architecture, teacher_dir)
    refuse_unfit(teacher)
    refuse_unfit(student)
    packer = Packer(stores[0], recipe.sequence_tokens, recipe.seed)
    distances = solved_once(
        recipe, run_dir, lambda: reconstructed(recipe, teacher, student, kept, packer, progress)
    )
    rounded = round_in_training(student, recipe.head_bits) if recipe.quantize_to else []
    states = None
    if recipe.hidden:
        pairs = counterparts(kept, student.config.num_hidden_layers, depth)
        states = HiddenStates(teacher, student, pairs, recipe.hidden)
    group = Group()
    teacher.to(group.device)
    identity = {
        "data": [store.card.sha256 for store in stores if store],
        "teacher": base_digest(teacher_dir),
        "start": request["student_dir"] and base_digest(Path(request["student_dir"])),
        **recipe.model_dump(mode="json", include=set(OF_TEACHING)),
    }
    if recipe.keep_predictions:
        vocab = min(vocabulary(teacher), vocabulary(student))
        batches = kept_predictions(recipe, teacher, vocab, packer, run_dir, identity, progress)
        objective = KeptDistillation(batches, recipe.temperature, recipe.weight)
        del teacher
    else:
        batches = packer
        objective = Distillation(teacher, recipe.temperature, recipe.weight, recipe.divergence, states)
    try:
        result = fit(
            student,
            objective,
            batches,
            recipe,
            run_dir=run_dir,
            group=group,
            validate=held_of(recipe, stores),
            on_step=lambda at: progress(f"teaching, loss {at.loss:.3f}", at.step / at.steps),
            identity=identity,
        )
    except Diverged as error:
        raise InvalidInput(error.message, param="optimizer.lr") from None
    HiddenStates.remove(student)
    keep_rounded(rounded)
    model_dir = run_dir / "model"
    shutil.rmtree(model_dir, ignore_errors=True)
    dtype = torch.float32 if rounded else saved_dtype(teacher_dir)  # rounded weights are kept to the last bit
    student.to(dtype).save_pretrained(model_dir)
    keep_tokenizer(teacher_dir, model_dir)
    write_generation_config(model_dir)
    return metrics_of(result) | {"reconstructed": distances}


def reconstructed(
    recipe: DistillRecipe,
    teacher: Any,
    student: Any,
    kept: list[int] | None,
    packer: Any,
    progress: Progress,
) -> dict[int, tuple[float, float]]:
    """Solves for what ``kept`` left out: how far each solved layer was, before and after.

    See :mod:`compress.prune.reconstruct`.
    """
    import torch

    from compress.prune.reconstruct import reconstruct

    rows = min(packer.rows, recipe.reconstruct_tokens // recipe.sequence_tokens)
    if kept is None or not rows:
        return {}
    batch = {name: torch.as_tensor(one) for name, one in packer.batch(0, rows).items()}
    return reconstruct(
        teacher, student, kept, batch, lambda done: progress("solving for what was taken out", done)
    )


def kept_predictions(
    recipe: DistillRecipe,
    teacher: Any,
    vocab: int,
    packer: Packer,
    run_dir: Path,
    identity: Mapping[str, Any],
    progress: Progress,
) -> KeptPredictions:
    """What the teacher predicts for the rows that will be read. Raises InvalidInput, and Unavailable for a full disk."""
    from compress.distill.kept_predictions import KeptPredictions
    from train.loop import choose_dtype, total_steps

    assert recipe.keep_predictions
    decides = {name: identity[name] for name in ("data", "teacher", "temperature")}
    kept = KeptPredictions(
        packer,
        total_steps(recipe, packer.rows) * recipe.rows,
        run_dir / "predictions",
        recipe.keep_predictions,
        vocab,
        {**decides, "seed": recipe.seed},
    )
    precision = choose_dtype(recipe.dtype, next(teacher.parameters()).device)
    kept.ask(teacher, recipe.temperature, precision, progress)
    return kept


def solved_once(
    recipe: DistillRecipe, run_dir: Path, solve: Callable[[], dict[int, tuple[float, float]]]
) -> dict[str, list[float]]:
    """What ``solve`` found, called before the first step: an interrupted run goes on from a checkpoint, which has it."""
    from compress.prune.reconstruct import rounded
    from train.parallel.wrap import Group
    from train.runs.checkpoint import Checkpoints

    file = run_dir / "reconstructed.json"
    if not (Checkpoints(run_dir / "checkpoints", recipe.checkpoint.keep, Group()).newest() and file.exists()):
        write_file(file, json.dumps(rounded(solve())).encode())
    return json.loads(file.read_bytes())


def dropped_of(student: Version, teacher: Version) -> list[int] | None:
    """Which of the teacher's layers a student that was pruned from it lacks; None for another one."""
    made = student.manifest.recipe.get("prune")
    return made.get("dropped", []) if made and student.parent_digest == teacher.digest else None


def refuse_other_tokenizer(teacher_dir: Path, student_dir: Path) -> None:
    """Raises InvalidInput where the two would not mean the same by an id."""
    from train.data.tokenize import Tokens

    if Tokens(teacher_dir).sha256 != Tokens(student_dir).sha256:
        raise InvalidInput("teacher and student have different tokenizers", param="student.model")


if __name__ == "__main__":
    answer(teach)
