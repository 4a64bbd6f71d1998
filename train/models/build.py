"""The model of a run: loaded from its base, or made from an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everlearn.errors import ConfigError, InvalidInput
from everlearn.memory import physical_bytes
from train.models.heads import LABELLED_TASKS, with_head
from train.models.load import load_causal_lm
from train.models.packed_rows import refuse_unfit
from train.recipe import Architecture, TrainRecipe
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
    if model_dir is not None and (task := recipe.objective_spec.task) in LABELLED_TASKS:
        torch.manual_seed(recipe.seed)
        return add_adapters(with_head(model_dir, task, labels), recipe.tune, task)
    if model_dir is not None:
        model = load_causal_lm(model_dir)
        refuse_unfit(model)
        torch.manual_seed(recipe.seed)
        return add_adapters(model, recipe.tune)
    if recipe.architecture is None:
        raise InvalidInput("a recipe without base needs an architecture", param="architecture")
    refuse_too_large(recipe.architecture)
    torch.manual_seed(recipe.seed)
    return from_scratch(recipe.architecture, tokenizer_dir)


def refuse_too_large(architecture: Architecture) -> None:
    """Raises ConfigError where the float32 weights alone do not fit into this machine's memory."""
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
    if isinstance(context, int) and recipe.sequence_tokens > context > 0:
        raise ConfigError(
            f"sequence_tokens is {recipe.sequence_tokens}, and the model reads at most {context} tokens: "
            f"{context} or fewer would do",
            param="sequence_tokens",
        )
    if tokens > (rows := model.get_input_embeddings().num_embeddings):
        raise InvalidInput(
            f"the tokenizer has ids up to {tokens - 1}, and the model's embedding {rows} rows: they do not belong "
            "together",
            param="base",
        )


def from_scratch(architecture: Architecture, tokenizer_dir: Path) -> nn.Module:
    """A Llama with random weights (torch's generator decides which)."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True, trust_remote_code=False)
    ffn = architecture.ffn or -(-architecture.hidden * 8 // 3 // 32) * 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden,
        intermediate_size=ffn,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads or architecture.heads,
        max_position_embeddings=architecture.context,
        tie_word_embeddings=architecture.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
