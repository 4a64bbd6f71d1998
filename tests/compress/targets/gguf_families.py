"""A tiny random model of every family that a GGUF file can hold, with each kind of rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_models import CHAT_TEMPLATE, END, START, TINY, train_tokenizer

SIZES: dict[str, Any] = TINY | {
    "head_dim": 32,
    "pad_token_id": 0,
    "initializer_range": 0.08,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0 + 0.1 * at for at in range(16)], "rope_theta": 10000.0,
    "long_factor": [2.0 + 0.5 * at for at in range(16)], "original_max_position_embeddings": 256,
}  # fmt: skip
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32, "sliding_window": 48}
GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
SPLIT_HEADS = {"head_dim": 16}

FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama untied": ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "llama linear": ("llama", {"rope_parameters": LINEAR}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", SPLIT_HEADS),
    "qwen2 yarn": ("qwen2", {**SPLIT_HEADS, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3 yarn": ("qwen3", {"rope_parameters": YARN}),
    "phi3": ("phi3", {"head_dim": 16, "tie_word_embeddings": False}),
    "phi3 partial": (
        "phi3", {**SPLIT_HEADS, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}}
    ),
    "gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3 linear": (
        "gemma3_text",
        {**GEMMA, "num_hidden_layers": 7, "rope_parameters": {"full_attention": GLOBAL, "sliding_attention": LOCAL}},
    ),
}  # fmt: skip


def write_family(name: str, directory: Path, **more: Any) -> Path:
    """A Hugging Face directory of :data:`FAMILIES`; ``more`` overwrites its configuration."""
    model_type, values = FAMILIES.get(name, (name, {}))
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **values, **more})
    model = AutoModelForCausalLM.from_config(config)
    for key, one in model.named_parameters():
        if one.ndim == 1:
            torch.nn.init.normal_(one, 0.0 if "bias" in key or "gemma" in model_type else 1.0, 0.2)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), bos_token=START, eos_token=END, pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)  # fmt: skip
    return directory
