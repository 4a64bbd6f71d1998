"""The recipes and the data that users are shown are recipes and data."""

import re
from pathlib import Path

import pytest
import yaml

from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.read import SUFFIXES, read_examples
from train.recipe import TrainRecipe, read_recipe, recipe_keys

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((REPOSITORY / "train" / "examples").glob("*.yaml"))
PAGE = (REPOSITORY / "docs" / "training.md").read_text()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_recipe_that_the_page_shows(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.data.train[0].parent == file.parent
    assert f"(../train/examples/{file.name})" in PAGE


def test_the_chat_example_has_data_that_can_be_learnt(tokenizer_dir: Path, tmp_path: Path) -> None:
    recipe = read_recipe(REPOSITORY / "train" / "examples" / "chat.yaml")
    examples = [example for file in recipe.data.train for example in read_examples(file, kind="chat")]
    options = DataOptions(kind="chat", held_fraction=recipe.data.held_fraction)
    card = prepare(recipe.data.train, tokenizer_dir, tmp_path / "out", options)
    assert len(examples) == card.kept >= 10 and card.held.documents > 0 and not card.dropped


def test_every_recipe_on_the_page_is_one(tmp_path: Path) -> None:
    """Those that show some keys alone, too: they are a recipe's."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    whole = [block for block in blocks if block.startswith("base:")]
    assert len(whole) >= 3
    for block in whole:
        (tmp_path / "recipe.yaml").write_text(block)
        read_recipe(tmp_path / "recipe.yaml")
    for block in blocks:
        assert set(yaml.safe_load(block)) <= set(recipe_keys(TrainRecipe)), block


def test_the_page_says_the_defaults_as_they_are(tmp_path: Path) -> None:
    blocks = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    shown = next(block for block in blocks if "checkpoint" in block)
    recipe = TrainRecipe.model_validate({"data": shown["data"]})
    default = recipe.model_dump(mode="json") | {"objective": recipe.objective_spec.name}
    assert set(shown) <= set(recipe_keys(TrainRecipe))
    for key in sorted(set(shown) - {"base", "data", "tune"}):
        values = (
            default[key] if not isinstance(shown[key], dict) else {k: default[key][k] for k in shown[key]}
        )
        assert shown[key] == values, key
    options = DataOptions()
    for name in ("min_chars", "near_duplicates", "held_fraction"):
        assert re.search(rf"`{name}` \({getattr(options, name)}\)", PAGE), name
    assert all(
        f"`{suffix}`" in PAGE for suffix in (".jsonl", ".parquet", ".txt", ".md") if suffix in SUFFIXES
    )
