"""A decoder that is taught by a larger one's predictions: the child of ``everlearn distill``, and of a plan that heals."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.distill.decoder_objective import Distillation, HiddenStates, counterparts
from compress.distill.kept_predictions import KeptDistillation, KeptPredictions
from compress.distill.preparation import (
    identity_of,
    kept_layers,
    refuse_other_tokenizer,
    solved_once,
    texts_to_learn,
)
from compress.distill.recipe import OF_TEACHING, DistillRecipe
from compress.parent_files import keep_tokenizer
from compress.prune.layers import evenly_spaced, with_layers
from compress.prune.reconstruct import reconstruct
from compress.quantize.quantize_aware import keep_rounded, round_in_training
from everlearn.chat.stops import write_generation_config
from everlearn.errors import InvalidInput
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.data.packing import Packer
from train.errors import Diverged
from train.loop import choose_dtype, fit, total_steps
from train.models.from_scratch import from_scratch
from train.models.load import load_causal_lm
from train.models.packed_rows import refuse_unfit
from train.models.save import saved_dtype
from train.objectives.logits import vocabulary
from train.objectives.objective import Objective
from train.parallel.group import Group
from train.recipe import validate_recipe
from train.run import held_of, metrics_of


def teach_decoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes the student to ``run_dir/model`` and returns the metrics. Raises InvalidInput, also where the loss diverged."""
    recipe = validate_recipe(DistillRecipe, request["recipe"])
    teacher_dir, run_dir = Path(request["teacher_dir"]), Path(request["run_dir"])
    stores = texts_to_learn(recipe, teacher_dir, run_dir, progress)
    progress("loading the teacher", None)
    teacher = load_causal_lm(teacher_dir)
    torch.manual_seed(recipe.seed)
    student, kept = student_of(recipe, request, teacher)
    refuse_unfit(teacher)
    refuse_unfit(student)
    packer = Packer(stores[0], recipe.sequence_tokens, recipe.seed)
    distances = solved_once(
        recipe, run_dir, partial(reconstructed, recipe, teacher, student, kept, packer, progress)
    )
    rounded = round_in_training(student, recipe.head_bits) if recipe.quantize_to else []
    states = hidden_states(recipe, teacher, student, kept)
    group = Group()
    teacher.to(group.device)
    identity = identity_of(request, recipe, stores, OF_TEACHING)
    batches: Packer | KeptPredictions = packer
    objective: Objective
    if recipe.keep_predictions:
        vocab = min(vocabulary(teacher), vocabulary(student))
        batches = kept_predictions(recipe, teacher, vocab, packer, run_dir, identity, progress)
        objective = KeptDistillation(batches, recipe.temperature, recipe.weight)
    else:
        objective = Distillation(teacher, recipe.temperature, recipe.weight, recipe.divergence, states)
    del teacher  # where its predictions are kept, its memory is free from here on
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
    write_student(student, rounded, teacher_dir, run_dir / "model")
    return metrics_of(result) | {"reconstructed": distances}


def student_of(
    recipe: DistillRecipe, request: Mapping[str, Any], teacher: Any
) -> tuple[Any, list[int] | None]:
    """Who learns, and which of the teacher's layers it has, where it is made of those.

    Raises InvalidInput for another tokenizer than the teacher's.
    """
    teacher_dir, depth = Path(request["teacher_dir"]), teacher.config.num_hidden_layers
    if request["student_dir"]:
        student_dir = Path(request["student_dir"])
        refuse_other_tokenizer(teacher_dir, student_dir)
        return load_causal_lm(student_dir), kept_layers(request, depth)
    if recipe.student.layers is not None:
        kept = evenly_spaced(recipe.student.layers, depth)
        return with_layers(teacher, kept), kept
    assert recipe.student.architecture
    return from_scratch(recipe.student.architecture, "generate", teacher_dir), None


def hidden_states(
    recipe: DistillRecipe, teacher: Any, student: Any, kept: list[int] | None
) -> HiddenStates | None:
    """What of the layers' outputs is learnt beside the predictions, where the recipe asks for it."""
    if not recipe.hidden:
        return None
    pairs = counterparts(kept, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    return HiddenStates(teacher, student, pairs, recipe.hidden)


def reconstructed(
    recipe: DistillRecipe,
    teacher: Any,
    student: Any,
    kept: list[int] | None,
    packer: Packer,
    progress: Progress,
) -> dict[int, tuple[float, float]]:
    """Solves for what ``kept`` left out: how far each solved layer was, before and after.

    See :mod:`compress.prune.reconstruct`.
    """
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


def write_student(student: Any, rounded: list[nn.Module], teacher_dir: Path, model_dir: Path) -> None:
    """Writes the student with the teacher's tokenizer. Last use of it. rounded: the modules that computed with rounded weights."""
    HiddenStates.remove(student)
    keep_rounded(rounded)
    shutil.rmtree(model_dir, ignore_errors=True)
    dtype = torch.float32 if rounded else saved_dtype(teacher_dir)  # rounded weights are kept to the last bit
    student.to(dtype).save_pretrained(model_dir)
    keep_tokenizer(teacher_dir, model_dir)
    write_generation_config(model_dir)


if __name__ == "__main__":
    answer(teach_decoder)
