"""An encoder that is taught by a larger one: the child of ``everlearn distill``, and of a plan that heals an encoder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.distill.encoder_objective import EmbeddingDistillation, Spans
from compress.distill.preparation import (
    identity_of,
    kept_layers,
    refuse_other_tokenizer,
    solved_once,
    texts_to_learn,
)
from compress.distill.recipe import DistillRecipe
from compress.parent_files import keep_beside_weights
from compress.prune.layers import evenly_spaced, layers_of, with_layers
from compress.prune.prune_encoder import take_over
from compress.sentence_encoder import (
    Encoder,
    embedding_similarity,
    load_encoder,
    max_length,
    save_encoder,
    texts_of,
)
from everlearn.errors import InvalidInput
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.data.store import TokenStore
from train.data.tokenize import marks
from train.errors import Diverged
from train.loop import fit
from train.models.save import saved_dtype
from train.objectives.objective import HeldOut
from train.parallel.group import Group
from train.recipe import validate_recipe


def teach_encoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes the student to ``run_dir/model`` and returns the metrics.

    Only its layers learn: the embeddings of tokens that the text does not have would stay behind those that it has.
    Raises InvalidInput, also where the loss diverged.
    """
    recipe = validate_recipe(DistillRecipe, request["recipe"])
    teacher_dir, run_dir = Path(request["teacher_dir"]), Path(request["run_dir"])
    stores = texts_to_learn(recipe, teacher_dir, run_dir, progress)
    progress("loading the teacher", None)
    teacher = load_encoder(teacher_dir)
    body, kept = student_of(recipe, request, teacher)
    student = Encoder(body, teacher.pooling)
    distances = solved_once(
        recipe,
        run_dir,
        lambda: solved(recipe, teacher, student, kept, stores[0], teacher_dir, progress),
    )
    body.requires_grad_(False)
    layers_of(body).requires_grad_(True)
    for part in body.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    group = Group()
    teacher.to(group.device)
    rows, longest, ends = recipe.sequence_tokens, max_length(teacher_dir), marks(teacher_dir)
    spans = Spans(stores[0], rows, longest, recipe.seed, *ends)
    held = Spans(stores[1], rows, longest, 0, *ends) if stores[1] else None
    try:
        result = fit(
            body,
            EmbeddingDistillation(teacher, recipe.hidden),
            spans,
            recipe,
            run_dir=run_dir,
            group=group,
            validate=held and HeldOut(held, EmbeddingDistillation(teacher, 0)),
            on_step=lambda at: progress(f"teaching, loss {at.loss:.4f}", at.step / at.steps),
            identity=identity_of(request, recipe, stores, ("student", "hidden", "reconstruct_tokens")),
        )
    except Diverged as error:
        raise InvalidInput(error.message, param="optimizer.lr") from None
    progress("measuring", None)
    near = embedding_similarity(student.cpu().eval().embed, teacher.cpu().embed, teacher_dir)
    model_dir = run_dir / "model"
    shutil.rmtree(model_dir, ignore_errors=True)
    save_encoder(student, saved_dtype(teacher_dir), model_dir)
    keep_beside_weights(teacher_dir, model_dir)
    return {
        **near,
        "held_cosine_before": cosine(result.held_nll_before),
        "held_cosine": cosine(result.held_nll),
        "train_loss": round(result.train_loss, 6),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 2),
        "peak_memory_bytes": result.peak_memory_bytes,
        "reconstructed": distances,
    }


def student_of(
    recipe: DistillRecipe, request: Mapping[str, Any], teacher: Encoder
) -> tuple[Any, list[int] | None]:
    """Who learns, without pooling, and which of the teacher's layers it has, where it is made of those."""
    depth = teacher.body.config.num_hidden_layers
    if request["student_dir"]:
        student_dir = Path(request["student_dir"])
        refuse_other_tokenizer(Path(request["teacher_dir"]), student_dir)
        body = load_encoder(student_dir).body
        kept = kept_layers(request, depth)
    else:
        assert recipe.student.layers is not None
        kept = evenly_spaced(recipe.student.layers, depth)
        body = with_layers(teacher.body, kept)
    if body.config.hidden_size != teacher.body.config.hidden_size:
        raise InvalidInput(
            f"the student's embeddings have {body.config.hidden_size} numbers, the teacher's "
            f"{teacher.body.config.hidden_size}: an encoder learns from one of its own width",
            param="student.model",
        )
    return body, kept


def cosine(distance: float | None) -> float | None:
    return None if distance is None else round(1 - distance, 5)


def solved(
    recipe: DistillRecipe,
    teacher: Encoder,
    student: Encoder,
    kept: list[int] | None,
    store: TokenStore,
    teacher_dir: Path,
    progress: Progress,
) -> dict[int, tuple[float, float]]:
    """Solves for what ``kept`` left out, on ``reconstruct_tokens`` of the text; see :mod:`compress.prune.prune_encoder`."""
    if kept is None:
        return {}
    texts = texts_of(store.tokens[: recipe.reconstruct_tokens].astype("int64"), teacher_dir)
    if not texts:
        return {}
    return take_over(
        teacher, student, kept, texts, lambda done: progress("solving for what was taken out", done)
    )


if __name__ == "__main__":
    answer(teach_encoder)
