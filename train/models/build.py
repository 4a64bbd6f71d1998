"""The model of a run: loaded or made, and written as the Hugging Face directory that becomes a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.chat.stops import write_generation_config
from everlearn.errors import ConfigError, InvalidInput, Unavailable
from everlearn.memory import physical_bytes
from train.runs.full_disk import why_not_written
from train.evaluate.perplexity import load_causal_lm
from train.models.packed_rows import refuse_unfit
from train.recipe import Architecture, TrainRecipe
from train.tuning.trainable import add_adapters, merge_adapters

# What makes ids of texts, and a licence: taken over as they are.
KEPT = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "LICENSE*",
)


def build(recipe: TrainRecipe, model_dir: Path | None, tokenizer_dir: Path) -> nn.Module:
    """The model to train, float32, adapters beside it where the recipe asks for them.

    What of it is random depends on the recipe's seed alone: every rank makes the same, and so does another start.
    Raises Unsupported for a base that cannot learn from packed rows, see ``train.models.packed_rows``.
    """
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


def write(
    model: Any,
    state: dict[str, Tensor] | None,
    recipe: TrainRecipe,
    base: Path | None,
    tokenizer_dir: Path,
    target: Path,
) -> None:
    """``target`` becomes a Hugging Face directory: adapters merged, weights in the base's own dtype.

    ``state``: trained tensors by name, whole, to put into ``model`` first; None where they are in it.
    """
    if state is not None:
        model.load_state_dict(state, strict=False)
    model = merge_adapters(model.cpu(), recipe.tune)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    try:
        _save(model.to(saved_dtype(base)), tokenizer_dir, partial)
    except BaseException:  # a full disk gets its room back
        shutil.rmtree(partial, ignore_errors=True)
        raise
    move_directory(partial, target)


def _save(model: Any, tokenizer_dir: Path, target: Path) -> None:
    try:
        model.save_pretrained(target)
    except SafetensorError as error:  # which has no errno
        why = why_not_written(error, target, model.get_memory_footprint())
        raise Unavailable(f"the model could not be written: {why}") from error
    for pattern in KEPT:
        for file in tokenizer_dir.glob(pattern):
            shutil.copyfile(file, target / file.name)
    write_generation_config(target)
    sync_tree(target)


def saved_dtype(base: Path | None) -> torch.dtype:
    """The dtype of the base's weights, as its config.json says; float32 from scratch."""
    if base is None:
        return torch.float32
    config = json.loads((base / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
