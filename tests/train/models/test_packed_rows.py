"""Of every family: the loss of packed documents is that of each alone by the model's own logits, or it is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from everlearn.errors import Unsupported
from tests.train.objectives.test_objectives import one_by_one, packed
from train.models.packed_rows import refuse_unfit
from train.objectives.causal import CausalLM
from train.objectives.logits import head_of

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.08,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT = {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}

TRAINED: dict[str, dict[str, Any]] = {
    "llama": SMALL | GROUPED | {"attention_bias": True},
    "mistral": SMALL | GROUPED | {"sliding_window": 8},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "qwen3": SMALL | GROUPED,
    "qwen3_moe": SMALL | GROUPED | EXPERTS,
    "mixtral": SMALL | GROUPED | EXPERTS,
    "gemma": SMALL | GROUPED,
    "gemma2": SMALL | GROUPED | {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5, "sliding_window": 8},
    "gemma3_text": SMALL | GROUPED | {"sliding_window": 8},
    "vaultgemma": SMALL | GROUPED | {"final_logit_softcapping": 0.5},
    "nanochat": SMALL | GROUPED | {"final_logit_softcapping": 0.5},
    "granite": SMALL | GROUPED | {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "granitemoe": SMALL | GROUPED | EXPERTS | {"logits_scaling": 4.0},
    "cohere": SMALL | GROUPED | {"logit_scale": 0.25},
    "cohere2": SMALL | GROUPED | {"logit_scale": 0.25},
    "hyperclovax": SMALL | GROUPED | {"logits_scaling": 0.25},
    "phi": SMALL | GROUPED,
    "phi3": SMALL | GROUPED,
    "smollm3": SMALL | GROUPED,
    "olmo": SMALL,
    "olmo2": SMALL,
    "olmo3": SMALL | {"sliding_window": 8},
    "stablelm": SMALL | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "starcoder2": SMALL | {"num_key_value_heads": 2},
    "nemotron": SMALL | GROUPED,
    "ernie4_5": SMALL | GROUPED,
    "glm4": SMALL | GROUPED,
    "exaone4": SMALL | GROUPED,
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 8},
    "gpt_neox": SMALL,
    "gpt_bigcode": GPT,
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"vocab_size": 512, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "see each other"),
    "mpt": ({"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 4}, "see each other"),
    "opt": (SMALL | {"ffn_dim": 96, "word_embed_proj_dim": 64}, "see each other"),
    "gpt_oss": (SMALL | GROUPED | EXPERTS, "see each other"),
    "mamba": ({"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "see each other"),
    "jamba": (SMALL | EXPERTS | {"num_key_value_heads": 2, "use_mamba_kernels": False}, "see each other"),
    "minimax": (SMALL | GROUPED | EXPERTS, "see each other"),
    "bert": (SMALL, "sees the tokens that follow"),
    "roberta": (SMALL, "sees the tokens that follow"),
}  # fmt: skip


def made(family: str, options: dict[str, Any], attention: str | None = None) -> Any:
    """A model whose norms, biases and heads are random too, so that nothing cancels out."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.2)
    return model


EAGER = ("llama", "mistral", "gemma2", "gemma3_text", "qwen3_moe", "granite", "gpt2", "gpt_neox")


@pytest.mark.parametrize(
    ("family", "attention"), [*((one, None) for one in TRAINED), *((one, "eager") for one in EAGER)]
)
def test_packed_documents_cost_what_each_costs_alone(family: str, attention: str | None) -> None:
    """In evaluation and in training, where transformers chooses the attention itself, and eagerly."""
    model = made(family, TRAINED[family], attention)
    refuse_unfit(model.eval())
    batch = packed(sequence_tokens=32, rows=1)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        expected = one_by_one(model, batch)
        assert CausalLM()(model, batch)[0].item() == pytest.approx(expected, rel=1e-5)
    assert CausalLM()(model.train(), batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_packing_would_spoil_is_refused_by_name(family: str) -> None:
    options, why = REFUSED[family]
    model = made(family, options)
    with pytest.raises(Unsupported, match=why) as caught:
        refuse_unfit(model)
    assert type(model).__name__ in caught.value.message


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "distilbert", "electra"])
def test_the_head_of_a_masked_model_is_not_taken_for_a_plain_one(family: str) -> None:
    torch.manual_seed(0)
    names = {"distilbert": {"vocab_size": 512, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}}
    model: Any = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **names.get(family, SMALL)))
    assert head_of(model) is None


def test_a_plain_head_is_found() -> None:
    for family in ("llama", "gpt2", "gemma3_text", "gpt_neox"):
        assert head_of(made(family, TRAINED[family])) is not None


def test_gradients_through_changed_logits_are_autograds() -> None:
    for family in ("gemma2", "granite", "cohere"):
        model = made(family, TRAINED[family], "eager")
        batch = packed(sequence_tokens=32, rows=1)
        CausalLM()(model, batch)[0].backward()
        ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
        logits: Tensor = model(**inputs, use_cache=False).logits
        nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        ).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-4)
