"""Writes a trained model as the Hugging Face directory that becomes a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.bundles.tasks import Task
from everlearn.chat.stops import write_generation_config
from everlearn.errors import Unavailable
from train.models.image_text import bound_temperature, write_preprocessor
from train.models.sentence import pooling_of, write_sentence_files
from train.recipe import TrainRecipe
from train.runs.full_disk import why_not_written
from train.tuning.lora import merge_adapters

COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "LICENSE*",
)
"""Of the tokenizer's folder: what turns text into ids, and the licence, copied unchanged."""


def write_model(
    model: Any,
    state: dict[str, Tensor] | None,
    recipe: TrainRecipe,
    base: Path | None,
    tokenizer_dir: Path,
    target: Path,
) -> None:
    """``target`` becomes a Hugging Face directory: adapters merged, weights in the base's own dtype.

    ``state``: full trained tensors by name, to load into ``model`` first; None where they are in it.
    """
    if state is not None:
        model.load_state_dict(state, strict=False)
    model = merge_adapters(model.cpu(), recipe.tune)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    try:
        _save(model.to(saved_dtype(base)), tokenizer_dir, partial, recipe.objective_spec.task)
        if recipe.objective_spec.task == "embed":
            chosen = recipe.embedding.pooling if recipe.embedding else None
            pooling = chosen or pooling_of(base)
            write_sentence_files(partial, base, pooling, model.config.hidden_size, recipe.sequence_tokens)
            sync_tree(partial)
    except BaseException:  # a full disk gets its room back
        shutil.rmtree(partial, ignore_errors=True)
        raise
    move_directory(partial, target)


def _save(model: Any, tokenizer_dir: Path, target: Path, task: Task) -> None:
    if task == "image_text":
        bound_temperature(model)
    try:
        model.save_pretrained(target)
    except SafetensorError as error:  # which has no errno
        why = why_not_written(error, target, model.get_memory_footprint())
        raise Unavailable(f"the model could not be written: {why}") from error
    for pattern in COPIED:
        for file in tokenizer_dir.glob(pattern):
            shutil.copyfile(file, target / file.name)
    if task in ("generate", "text2text"):
        write_generation_config(target)
    if task == "image_text":
        write_preprocessor(model, target)
    sync_tree(target)


def saved_dtype(base: Path | None) -> torch.dtype:
    """The dtype of the base's weights, as its config.json says; float32 from scratch."""
    if base is None:
        return torch.float32
    config = json.loads((base / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
