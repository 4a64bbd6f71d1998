"""What a job may be told, and how a wrong word is answered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from continual.recipe import ContinualRecipe, domain_of, parse_recipe
from everlearn.errors import ConfigError


def test_the_hyperparameters_of_the_openai_api_map_onto_the_recipe() -> None:
    recipe = parse_recipe({}, n_epochs=3, learning_rate_multiplier=0.5, batch_size=8, seed=7)
    assert (recipe.epochs, recipe.lr_multiplier, recipe.seed) == (3, 0.5, 7)
    assert recipe.batch_tokens == 8 * recipe.sequence_tokens


def test_auto_and_absent_hyperparameters_leave_the_defaults() -> None:
    assert parse_recipe({}, n_epochs="auto", batch_size="auto") == ContinualRecipe()


def test_a_recipes_own_word_goes_before_the_hyperparameters() -> None:
    recipe = parse_recipe({"epochs": 5, "batch_tokens": 64}, n_epochs=1, batch_size=8)
    assert (recipe.epochs, recipe.batch_tokens) == (5, 64)


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"epoch": 1}, "epoch", "epochs"),
        ({"gate": {"max_forgeting": 1}}, "gate.max_forgeting", "gate.max_forgetting"),
        ({"replay": {"buffer_token": 1}}, "replay.buffer_token", "replay.buffer_tokens"),
        ({"min_gain": 1}, "min_gain", "min_gain"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(values: dict, key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(values)
    assert caught.value.param == key
    assert repr(key) in caught.value.message and near in caught.value.message.split("did you mean")[1]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"lr": float("nan")}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"domain": "../x"}, "domain"),
        ({"domain": "base"}, "domain"),
        ({"gate": {"confidence": 1}}, "gate.confidence"),
        ({"replay": 1}, "replay"),
    ],
)
def test_a_value_that_cannot_be_right_is_named(values: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(values)
    assert caught.value.param == key


def test_a_recipe_survives_json() -> None:
    recipe = parse_recipe({"tune": "lora", "gate": {"min_gain": 0.1}})
    assert ContinualRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("filename", "domain"),
    [
        ("My RFCs.jsonl.gz", "my-rfcs"),
        ("圣经.txt", "shengjing"),
        ("été.jsonl", "ete"),
        ("modèle été.txt", "modele-ete"),
        ("Größe.csv", "grosse"),
        ("Москва.txt", "moskva"),
        ("e\u0301te\u0301.jsonl", "ete"),
        ("日本語 モデル.txt", "ribenyu-moderu"),
        (".jsonl", "unnamed"),
        ("base.txt", "base-file"),
        ("a/b.txt", "b"),
    ],
)
def test_a_domain_is_named_after_its_file(filename: str, domain: str) -> None:
    assert domain_of(filename) == domain
    assert ContinualRecipe(domain=domain).domain == domain


def test_the_gateway_can_validate_a_recipe_without_anything_heavy() -> None:
    code = (
        "import sys, continual.recipe; print([m for m in ('torch', 'numpy', 'celery') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
