"""LoRA: what is trained, and that merging changes no output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from everlearn.errors import ConfigError
from train.models.build import build_model
from train.models.save import write_model
from train.recipe import TrainRecipe, Tune
from train.tuning.lora import add_adapters, merge_adapters

LORA = Tune(method="lora", rank=4, alpha=8)


def adapted(base: Path, tune: Tune = LORA) -> torch.nn.Module:
    """Adapters with random weights: fresh ones add nothing."""
    torch.manual_seed(0)
    model = add_adapters(LlamaForCausalLM.from_pretrained(base), tune).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_merged_weights_answer_as_the_adapters_did(base: Path, tmp_path: Path) -> None:
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(base)(ids).logits
        model = adapted(base)
        beside = model(ids).logits
        recipe = TrainRecipe.model_validate({"data": {"store": "x"}, "tune": {"method": "lora", "rank": 4}})
        write_model(model, None, recipe, base, base, tmp_path / "model")
        merged = LlamaForCausalLM.from_pretrained(tmp_path / "model")
        within = merged(ids).logits
    assert (beside - plain).abs().max() > 0.1
    torch.testing.assert_close(within, beside, atol=1e-4, rtol=1e-4)
    assert merged.state_dict().keys() == LlamaForCausalLM.from_pretrained(base).state_dict().keys()
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if "adapter" in name]


def test_only_the_updates_are_trained(base: Path) -> None:
    trained = {name for name, p in adapted(base).named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    few = adapted(base, Tune(method="lora", rank=4, targets=("q_proj", "v_proj")))
    assert len([p for p in few.parameters() if p.requires_grad]) == 2 * 2 * 2


def test_a_target_that_no_layer_has_is_named(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.targets.*no_such_proj"):
        adapted(base, Tune(method="lora", targets=("no_such_proj",)))


def test_full_tuning_leaves_the_model_as_it_is(base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    assert add_adapters(model, Tune()) is model
    assert merge_adapters(model, Tune()) is model


def test_adapters_depend_on_the_seed_alone(base: Path) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 3)  # whatever was drawn before
        recipe = {"data": {"store": "x"}, "tune": {"method": "lora", "rank": 4}, "seed": seed}
        model = build_model(TrainRecipe.model_validate(recipe), base, base)
        return {name: p.detach() for name, p in model.named_parameters() if "lora_A" in name}

    first, second, other = made(0), made(0), made(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
