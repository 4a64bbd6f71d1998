"""The model of a run: loaded from its base, or made from an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from everlearn.bundles.tasks import AUTO_CLASSES, Task
from everlearn.bundles.text_positions import first_position
from everlearn.errors import ConfigError, InvalidInput, Unsupported
from everlearn.memory import physical_bytes
from train.models.architecture import Architecture
from train.models.dropout import dropout_settings
from train.models.from_scratch import from_scratch
from train.models.heads import LABELLED_TASKS, head_settings, with_head, without_pooler
from train.models.image_text import embedding_of, load_clip
from train.models.load import load_model
from train.models.packed_rows import refuse_unfit
from train.recipe import TrainRecipe
from train.tuning.lora import add_adapters


def build_model(
    recipe: TrainRecipe,
    model_dir: Path | None,
    tokenizer_dir: Path,
    labels: Sequence[str] | None = None,
) -> nn.Module:
    """The model to train, in float32, with adapters where the recipe asks for them.

    ``labels``: names of those that a classifier tells apart, by number.
    Random weights depend on the recipe's seed alone: every rank, and every restart, makes the same.
    Raises Unsupported for a base that cannot learn from packed rows, see ``train.models.packed_rows``.
    """
    task = recipe.objective_spec.task
    if model_dir is not None and task in LABELLED_TASKS:
        torch.manual_seed(recipe.seed)
        return add_adapters(with_head(model_dir, task, labels, recipe.dropout), recipe.tune, task)
    if model_dir is not None and task == "image_text":
        return add_adapters(load_clip(model_dir, recipe.dropout), recipe.tune, task)
    if model_dir is not None:
        torch.manual_seed(recipe.seed)
        model = load_for(model_dir, task, recipe.dropout)
        refuse_unfit(model, task)
        torch.manual_seed(recipe.seed)
        return add_adapters(model, recipe.tune)
    if recipe.architecture is None:
        raise InvalidInput("a recipe without base needs an architecture", param="architecture")
    refuse_too_large(recipe.architecture, tokenizer_dir)
    torch.manual_seed(recipe.seed)
    head = head_settings(task, labels)
    made = from_scratch(recipe.architecture, task, tokenizer_dir, recipe.dropout, head)
    if task in LABELLED_TASKS:
        return without_pooler(made, task)
    if recipe.architecture.family not in ("llama", "clip"):  # the one fits, the other packs nothing
        refuse_unfit(made, task)
    return made


def load_for(model_dir: Path, task: Task, dropout: float | None) -> Any:
    """The base as a model of ``task``; a masked model's head may be new. Raises Unsupported for another kind of model."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    settings = dropout_settings(config, dropout)
    try:
        return load_model(model_dir, task, new_head=task == "fill_mask", settings=settings)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise Unsupported(
            f"{model_dir.name} is no model for task {task}: transformers has no {AUTO_CLASSES[task]} of its kind",
            param="base",
        ) from None


def refuse_too_large(architecture: Architecture, tokenizer_dir: Path) -> None:
    """Raises ConfigError where the float32 weights alone do not fit into this machine's memory."""
    if architecture.taken_tokenizer:
        vocab = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).get_vocab_size()
        architecture = architecture.model_copy(update={"vocab": vocab})
    needed, there = 4 * architecture.parameters, physical_bytes()
    if needed > there:
        raise ConfigError(
            f"the architecture has about {architecture.parameters / 1e9:.1f} billion parameters, "
            f"{needed / 2**30:.0f} GiB of weights, and this machine has {there / 2**30:.0f} GiB of memory: fewer "
            "layers, or smaller hidden, ffn or vocab",
            param="architecture",
        )


def refuse_misfit(model: Any, recipe: TrainRecipe, tokens: int) -> None:
    """Raises where rows hold positions or ids (below ``tokens``) for which ``model`` has no embedding."""
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int):
        context -= first_position(config.model_type, config.pad_token_id)
    if isinstance(context, int) and recipe.sequence_tokens > context > 0:
        raise ConfigError(
            f"sequence_tokens is {recipe.sequence_tokens}, and the model reads at most {context} tokens: "
            f"{context} or fewer would do",
            param="sequence_tokens",
        )
    if tokens > (rows := embedding_of(model).num_embeddings):
        raise InvalidInput(
            f"the tokenizer has ids up to {tokens - 1}, and the model's embedding {rows} rows: they do not belong "
            "together",
            param="base",
        )
