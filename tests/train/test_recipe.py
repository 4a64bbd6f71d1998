"""A recipe's faults are told with their place and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import ConfigError
from train.recipe import TrainRecipe, read_recipe, recipe_diff, recipe_keys, validate_recipe

GOOD = """\
name: tiny
base: smollm2
data:
  train: [texts.jsonl]
tune: lora
optimizer:
  lr: 0.001
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_a_recipe_is_read_with_its_defaults_and_paths_beside_it(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert recipe.data.train == (tmp_path / "texts.jsonl",)
    assert (recipe.tune.method, recipe.tune.rank, recipe.optimizer.lr) == ("lora", 16, 0.001)
    assert (recipe.schedule.final_fraction, recipe.rows) == (0.1, 16)


def test_set_overrides_a_key_at_any_depth(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD), ["optimizer.lr=2e-4", "tune.rank=4", "steps=7", "seed=3"])
    assert (recipe.optimizer.lr, recipe.tune.method, recipe.tune.rank) == (2e-4, "lora", 4)
    assert (recipe.steps, recipe.seed) == (7, 3)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("  lr: 0.001", "  learning_rat: 1", "recipe.yaml:7: unknown recipe key 'optimizer.learning_rat'"),
        ("  lr: 0.001", "  weight_decai: 1", "did you mean 'optimizer.weight_decay'?"),
        (
            "name: tiny",
            "sequence_token: 9",
            "recipe.yaml:1: unknown recipe key 'sequence_token'; did you mean",
        ),
        ("tune: lora", "tune: {methd: lora}", "did you mean 'tune.method'?"),
        ("  lr: 0.001", "  lr: fast", "recipe.yaml:7: optimizer.lr: Input should be a valid number"),
        ("  lr: 0.001", "  lr: -1", "optimizer.lr: Input should be greater than 0 (got -1)"),
        ("tune: lora", "tune: lorra", "'full' or 'lora' (got 'lorra')"),
        ("name: tiny", "ranks: 2", "say how they share the work, parallel: ddp or fsdp2"),
        ("name: tiny", "batch_tokens: 1000", "must be a multiple of sequence_tokens (512); 1024 would do"),
        ("  train: [texts.jsonl]", "  kind: chat", "data: give either train"),
        ("data:\n  train: [texts.jsonl]\n", "", "nothing about 'data'"),
        (
            "base: smollm2",
            "architecture: {layers: 2, hidden: 30, heads: 4}",
            "must be a multiple of heads (4)",
        ),
    ],
)
def test_a_fault_names_its_place_and_what_would_be_right(
    tmp_path: Path, wrong: str, right: str, message: str
) -> None:
    file = write(tmp_path, GOOD.replace(wrong, right))
    with pytest.raises(ConfigError) as caught:
        read_recipe(file)
    assert message in caught.value.message


def test_every_field_is_a_known_key() -> None:
    keys = set(recipe_keys(TrainRecipe))
    assert {"tune.rank", "checkpoint.every_steps", "architecture.kv_heads", "data.held_fraction"} <= keys


def test_what_does_not_change_the_result_is_no_difference() -> None:
    one = validate_recipe(TrainRecipe, {"data": {"store": "a"}}).model_dump(mode="json")
    other = validate_recipe(
        TrainRecipe,
        {
            "data": {"store": "a"},
            "ranks": 4,
            "parallel": "fsdp2",
            "micro_batch": 1,
            "checkpoint": {"keep": 1},
            "seed": 1,
        },
    ).model_dump(mode="json")
    assert recipe_diff(one, other) == ["seed: 0 → 1"]
