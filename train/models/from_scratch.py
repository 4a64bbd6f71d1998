"""Makes a model with random weights, of one of ``train.models.families``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from everlearn.bundles.tasks import AUTO_CLASSES, Task
from train.models.architecture import Architecture
from train.models.dropout import dropout_settings
from train.models.image_text import clip_from_scratch, embedding_of, end_of_text, set_dropout


def from_scratch(
    architecture: Architecture,
    task: Task,
    tokenizer_dir: Path,
    dropout: float | None = None,
    head: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of ``task``, in its family's class where it is the family's own. Torch's generator decides the weights.

    ``head``: what config.json says of the head, see ``train.models.heads``.
    """
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True, trust_remote_code=False)
    if architecture.family == "clip":
        model = clip_from_scratch(architecture, tokenizer, end_of_text(tokenizer_dir))
        set_dropout(model, dropout)
        initialize(model, architecture.init)
        return model
    kind: Any = getattr(transformers, architecture.of.model)
    config = kind.config_class(**_CONFIGS[architecture.family](architecture), **_tokens(tokenizer))
    for key, value in {**dropout_settings(config, dropout), **(head or {})}.items():
        setattr(config, key, value)
    own = task == architecture.of.task
    model = kind(config) if own else getattr(transformers, AUTO_CLASSES[task]).from_config(config)
    initialize(model, architecture.init)
    return model


def initialize(model: Any, how: str) -> None:
    """Linear layers anew: ``xavier`` (Glorot and Bengio, 2010), ``he`` (arXiv 1502.01852); ``family``: left as they are.

    An output layer that is the embedding stays that.
    """
    if how == "family":
        return
    draw = nn.init.xavier_uniform_ if how == "xavier" else nn.init.kaiming_normal_
    embedding = embedding_of(model).weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            draw(module.weight)


def _tokens(tokenizer: Any) -> dict[str, Any]:
    """As the family's own tokenizer has them; config.json of encoders has no use for the others."""
    said = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if tokenizer.cls_token_id is None:
        return said
    return said | {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}


def _decoder(architecture: Architecture) -> dict[str, Any]:
    return {
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads or architecture.heads,
        "max_position_embeddings": architecture.context,
        "tie_word_embeddings": architecture.tied,
    }


def _qwen(architecture: Architecture) -> dict[str, Any]:
    return _decoder(architecture) | {"head_dim": architecture.hidden // architecture.heads}


def _gpt2(architecture: Architecture) -> dict[str, Any]:
    return {
        "n_embd": architecture.hidden,
        "n_inner": architecture.ffn_size,
        "n_layer": architecture.layers,
        "n_head": architecture.heads,
        "n_positions": architecture.context,
        "tie_word_embeddings": architecture.tied,
    }


def _deepseek(architecture: Architecture) -> dict[str, Any]:
    """The proportions of DeepSeek-V2-Lite (arXiv 2405.04434): latent keys and values of a quarter of the hidden size,
    the first layer dense; all heads have their own positions' half beside it."""
    assert architecture.experts
    head = architecture.hidden // architecture.heads
    return _decoder(architecture) | {
        "num_key_value_heads": architecture.heads,
        "qk_nope_head_dim": head,
        "qk_rope_head_dim": head // 4 * 2,
        "v_head_dim": head,
        "kv_lora_rank": max(8, architecture.hidden // 4),
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
        "n_routed_experts": architecture.experts.count,
        "num_experts_per_tok": architecture.experts.per_token,
        "n_shared_experts": architecture.experts.shared,
        "moe_intermediate_size": architecture.expert_ffn,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }


def _encoder(architecture: Architecture) -> dict[str, Any]:
    return {key: value for key, value in _decoder(architecture).items() if key != "num_key_value_heads"}


def _roberta(architecture: Architecture) -> dict[str, Any]:
    """Positions begin behind the padding's."""
    return _encoder(architecture) | {
        "max_position_embeddings": architecture.context + 2,
        "type_vocab_size": 1,
    }


def _distilbert(architecture: Architecture) -> dict[str, Any]:
    return {
        "dim": architecture.hidden,
        "hidden_dim": architecture.ffn_size,
        "n_layers": architecture.layers,
        "n_heads": architecture.heads,
        "max_position_embeddings": architecture.context,
        "tie_word_embeddings": architecture.tied,
    }


def _t5(architecture: Architecture) -> dict[str, Any]:
    """Version 1.1, as many layers on each side."""
    return {
        "d_model": architecture.hidden,
        "d_kv": architecture.hidden // architecture.heads,
        "d_ff": architecture.ffn_size,
        "num_layers": architecture.layers,
        "num_decoder_layers": architecture.layers,
        "num_heads": architecture.heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": architecture.tied,
        "decoder_start_token_id": 0,
    }


_CONFIGS: Mapping[str, Callable[[Architecture], dict[str, Any]]] = {
    "llama": _decoder,
    "qwen": _qwen,
    "gpt2": _gpt2,
    "gpt-neox": _encoder,
    "deepseek": _deepseek,
    "bert": _encoder,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "modernbert": _encoder,
    "t5": _t5,
}
