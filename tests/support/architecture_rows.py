"""Tiny random models of every family, whose next token is decided by where tokens stand, so that what is wrong shows.

Weights are large (an initializer range of 0.2 and outputs times two): attention looks at few tokens, and the next one
is predicted with 1 to 3 nats left. Rotary positions whose scaling is left out then cost 0.1 to 6 nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.tiny_models import END, START, TINY, train_tokenizer

SHAPE: dict[str, Any] = TINY | {
    "head_dim": 16,
    "initializer_range": 0.2,
}
FIRST_CONTEXT = 256
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": FIRST_CONTEXT},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": FIRST_CONTEXT,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": FIRST_CONTEXT},
}
"""Every type of ``rope_parameters`` of transformers 5 but plain ones."""


@dataclass(frozen=True)
class Row:
    """One model of the table; ``plain``: the same without what its variant names, where that can be left out."""

    variant: str
    config: PreTrainedConfig
    plain: PreTrainedConfig | None = None

    @property
    def architecture(self) -> str:
        return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.config.model_type]

    @property
    def name(self) -> str:
        return f"{self.architecture}, {self.variant}"


def rope(kind: str, pairs: int = 8, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    """``rope_parameters`` of this type."""
    factors = {
        "short_factor": [1.0 + 0.2 * at for at in range(pairs)],
        "long_factor": [2.0 + at for at in range(pairs)],
    }
    said = SCALED.get(kind, {}) | (factors if kind == "longrope" else {})
    return {"rope_type": kind, "rope_theta": theta, **said, **more}


FAMILIES: dict[type[PreTrainedConfig], dict[str, Any]] = {
    LlamaConfig: SHAPE,
    MistralConfig: SHAPE | {"sliding_window": None},
    Qwen2Config: SHAPE,
    Qwen3Config: SHAPE,
    GemmaConfig: SHAPE,
    Gemma2Config: SHAPE | {"query_pre_attn_scalar": 16},
    GraniteConfig: SHAPE,
    Ernie4_5Config: SHAPE,
    SmolLM3Config: SHAPE | {"num_hidden_layers": 4},
    PhiConfig: {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"hidden_size": 128},
}
"""Families with one set of rotary positions, of any type."""


def working() -> Iterator[Row]:
    """Every row that works."""
    for kind, shape in FAMILIES.items():
        more = {"partial_rotary_factor": 0.5} if kind is PhiConfig else {}
        plain = kind(**shape, rope_parameters=rope("default", **more))
        yield Row("plain rotary positions", plain)
        for scaled in SCALED:
            config = kind(**shape, rope_parameters=rope(scaled, **more))
            yield Row(f"rotary positions {scaled}", config, None if scaled == "dynamic" else plain)
    yield from of_phi3()
    yield from of_gemma3()
    yield from windows()
    yield from far_windows()
    yield from others()


def of_phi3() -> Iterator[Row]:
    """Phi 3 knows plain positions and longrope."""
    shape = SHAPE | {"original_max_position_embeddings": FIRST_CONTEXT}
    plain = Phi3Config(**SHAPE | {"original_max_position_embeddings": 1024})
    yield Row("plain rotary positions", plain)
    yield Row("rotary positions longrope", Phi3Config(**shape, rope_parameters=rope("longrope")), plain)
    half = rope("default", partial_rotary_factor=0.5)
    wide = {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"hidden_size": 128}
    yield Row("half of a head turned", Phi3Config(**wide, rope_parameters=half))


def of_gemma3() -> Iterator[Row]:
    """Gemma 3 has positions of its own in layers with a window."""
    shape = SHAPE | {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
    }

    def layers(kind: str) -> dict[str, Any]:
        return {"full_attention": rope(kind), "sliding_attention": rope("default", theta=100.0)}

    published = shape | {"num_hidden_layers": 6, "layer_types": None}
    yield Row("one whole layer of six", Gemma3TextConfig(**published))
    plain = Gemma3TextConfig(**shape, rope_parameters=layers("default"))
    yield Row("two kinds of layers", plain)
    for scaled in SCALED:
        config = Gemma3TextConfig(**shape, rope_parameters=layers(scaled))
        yield Row(f"two kinds of layers, whole ones {scaled}", config, None if scaled == "dynamic" else plain)


def windows() -> Iterator[Row]:
    """Layers that see 100 tokens back."""
    some = {"num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 1}
    for kind, more in (
        (MistralConfig, {}),
        (Phi3Config, {"original_max_position_embeddings": 1024}),
        (Qwen2Config, some),
        (Qwen3Config, some),
        (Gemma2Config, {"query_pre_attn_scalar": 16}),
        (SmolLM3Config, {"num_hidden_layers": 4, "use_sliding_window": True, "no_rope_layer_interval": 2}),
    ):
        config = kind(**SHAPE | more | {"sliding_window": 100})
        yield Row("a window of 100 tokens", config, kind(**SHAPE | more | {"sliding_window": 1000}))


def far_windows() -> Iterator[Row]:
    """Windows that no 512 tokens reach: of layers, and left over in configurations of families that have none."""
    for kind in (LlamaConfig, GraniteConfig, Ernie4_5Config, GemmaConfig):
        yield Row("sliding_window left over", kind(**SHAPE, sliding_window=600))
    phi3 = {"original_max_position_embeddings": 1024, "sliding_window": 600}
    for kind, more in ((MistralConfig, {"sliding_window": 600}), (Phi3Config, phi3)):
        said = {"layer_types": ["full_attention"] * 2}
        yield Row("a window of 600 tokens, layer_types left over", kind(**SHAPE | more, **said))
    some = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 600}
    yield Row("a window of 600 tokens", Qwen2Config(**SHAPE | some))


def others() -> Iterator[Row]:
    """What else a configuration may ask for."""
    yield Row("tied", LlamaConfig(**SHAPE, tie_word_embeddings=True))
    yield Row("biases", LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True))
    yield Row("one head of keys", LlamaConfig(**SHAPE | {"num_key_value_heads": 1}))
    yield Row("GELU", LlamaConfig(**SHAPE, hidden_act="gelu"))
    yield Row("heads of 48", LlamaConfig(**SHAPE | {"head_dim": 48}))
    yield Row("width 72", LlamaConfig(**SHAPE | {"hidden_size": 72, "intermediate_size": 100}))
    yield Row("tied", Qwen3Config(**SHAPE, tie_word_embeddings=True))
    yield Row("biases", Ernie4_5Config(**SHAPE, use_bias=True))
    capped = SHAPE | {"query_pre_attn_scalar": 16}
    yield Row(
        "attention capped at 2",
        Gemma2Config(**capped, attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
        Gemma2Config(**capped, attn_logit_softcapping=None, final_logit_softcapping=5.0),
    )
    scaled = {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3}
    yield Row("multipliers", GraniteConfig(**SHAPE, **scaled, logits_scaling=0.5), GraniteConfig(**SHAPE))


def write(config: PreTrainedConfig, directory: Path) -> None:
    """A Hugging Face directory of random weights, the same for the same shapes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.endswith("bias"):
                one.normal_(std=0.3)
        model.get_output_embeddings().weight.mul_(2)
        if config.model_type.startswith(
            "gemma"
        ):  # which makes the embedding eight times as large as what layers add
            model.get_input_embeddings().weight.div_(8)
            model.get_decoder().norm.weight.fill_(7)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), bos_token=START, eos_token=END, pad_token=END
    ).save_pretrained(directory)
