"""Preparation that both children of a distillation share: text, tokenizers, and layers solved for once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.distill.recipe import DistillRecipe
from compress.prune.reconstruct import rounded
from everlearn.bundles.durable import write_file
from everlearn.errors import InvalidInput
from everlearn.progress import Progress
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.store import TokenStore
from train.data.tokenize import Tokens
from train.parallel.group import Group
from train.run import base_digest, open_stores, refuse_foreign_tokens
from train.runs.checkpoint import Checkpoints


def texts_to_learn(
    recipe: DistillRecipe, teacher_dir: Path, run_dir: Path, progress: Progress
) -> tuple[TokenStore, TokenStore | None]:
    """What to learn from and what to measure on, prepared where the recipe names files.

    Raises InvalidInput where a store's tokens are another tokenizer's.
    """
    if recipe.data.train:
        said = recipe.data.model_dump(include=set(DataOptions.model_fields))
        options = DataOptions(**{**said, "max_tokens": recipe.data.max_tokens or recipe.sequence_tokens})
        prepare(recipe.data.train, teacher_dir, run_dir / "data", options, progress, held=recipe.data.held)
    stores = open_stores(recipe, run_dir)  # pyright: ignore[reportArgumentType]
    refuse_foreign_tokens(stores, Tokens(teacher_dir).sha256)
    return stores


def kept_layers(request: Mapping[str, Any], depth: int) -> list[int] | None:
    """Which of the teacher's ``depth`` layers a student that was pruned from it has; None for another one."""
    if request["dropped"] is None:
        return None
    return [at for at in range(depth) if at not in request["dropped"]]


def identity_of(
    request: Mapping[str, Any],
    recipe: DistillRecipe,
    stores: Sequence[TokenStore | None],
    keys: Sequence[str],
) -> dict[str, Any]:
    """What a checkpoint must agree with to be gone on from: the data, both models and ``keys`` of the recipe."""
    return {
        "data": [store.card.sha256 for store in stores if store],
        "teacher": base_digest(Path(request["teacher_dir"])),
        "start": request["student_dir"] and base_digest(Path(request["student_dir"])),
        **recipe.model_dump(mode="json", include=set(keys)),
    }


def solved_once(
    recipe: DistillRecipe, run_dir: Path, solve: Callable[[], dict[int, tuple[float, float]]]
) -> dict[str, list[float]]:
    """What ``solve`` found, called before the first step: an interrupted run goes on from a checkpoint, which has it."""
    file = run_dir / "reconstructed.json"
    if not (Checkpoints(run_dir / "checkpoints", recipe.checkpoint.keep, Group()).newest() and file.exists()):
        write_file(file, json.dumps(rounded(solve())).encode())
    return json.loads(file.read_bytes())


def refuse_other_tokenizer(teacher_dir: Path, student_dir: Path) -> None:
    """Raises InvalidInput where the two would not mean the same by an id."""
    if Tokens(teacher_dir).sha256 != Tokens(student_dir).sha256:
        raise InvalidInput("teacher and student have different tokenizers", param="student.model")
