"""A model from scratch with the tokenizer of another: a draft, a student, or one of few texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import ConfigError, NotFound
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.models.architecture import Architecture
from train.recipe import TrainRecipe, read_recipe
from train.runs.identity import contents_of

FEW = ["A black cat sleeps on the stairs.", "Rain falls on the green hills.", "The train leaves at noon."]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> Registry:
    """Holds the model ``tiny``; a recipe for few texts lies in this folder."""
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(base), name="tiny")
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(20) for text in FEW]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    recipe = {
        "name": "student",
        "architecture": {"layers": 1, "hidden": 16, "heads": 2, "context": 64, "tokenizer": {"of": "tiny"}},
        "data": {"train": "few.jsonl", "near_duplicates": None},
        "sequence_tokens": 32,
        "batch_tokens": 64,
        "steps": 2,
        "threads": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Registry(settings)


def train(*overrides: str) -> Any:
    options = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["train", "recipe.yaml", *options])


def test_it_gets_that_tokenizer_and_as_many_embeddings(home: Registry) -> None:
    done = train()
    assert done.exit_code == 0, done.output
    student, tiny = (home.path(home.resolve(name)) for name in ("student", "tiny"))
    assert (student / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    tokens = len(json.loads((tiny / "tokenizer.json").read_bytes())["model"]["vocab"])
    assert json.loads((student / "config.json").read_bytes())["vocab_size"] >= tokens

    again = train()
    assert again.exit_code == 0
    assert "student@1" in again.output


def test_a_store_that_was_prepared_with_it_can_be_learnt_from(home: Registry, stores: Path) -> None:
    held = f"data={{store: {stores / 'train'}, held_store: {stores / 'held'}}}"
    done = train(held, "sequence_tokens=64")
    assert done.exit_code == 0, done.output
    assert home.resolve("student").format == "safetensors"


def test_another_tokenizer_is_another_run(home: Registry, base: Path, tmp_path: Path) -> None:
    folders: list[dict[str, Any]] = []
    for change in ("", " "):
        folder = tmp_path / f"copy{len(folders)}"
        shutil.copytree(base, folder)
        (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + change.encode())
        folders.append(contents_of(read_recipe(Path("recipe.yaml"), [f"architecture.tokenizer.of={folder}"])))
    assert folders[0]["architecture.tokenizer"] != folders[1]["architecture.tokenizer"]
    assert folders[0]["data.train"] == folders[1]["data.train"]


def test_a_name_that_is_no_model_here_is_refused_before_anything_is_read(home: Registry) -> None:
    done = train("architecture.tokenizer.of=large")
    assert done.exit_code == 1
    assert "large" in done.output
    assert not (home.settings.home / "runs").exists()
    away = train("architecture.tokenizer.of=no/such/tiny")
    assert away.exit_code == 1 and "no/such/tiny is no folder with a tokenizer" in away.output.replace(
        "\n", ""
    )
    with pytest.raises(NotFound, match=r"no tokenizer\.json"):
        contents_of(read_recipe(Path("recipe.yaml"), ["architecture.tokenizer.of=large"]))
    with pytest.raises(ConfigError, match="no such user's folder"):
        read_recipe(Path("recipe.yaml"), ["architecture.tokenizer.of=~nobodyhere/x"])
    with pytest.raises(ConfigError, match="the name of a model, or a folder"):
        read_recipe(Path("recipe.yaml"), ["architecture.tokenizer.of=''"])


def test_what_it_would_have_decided_is_refused() -> None:
    sizes = {"layers": 1, "hidden": 16, "heads": 2}
    with pytest.raises(ValidationError, match="vocab: the tokenizer of tiny has its own"):
        Architecture.model_validate({**sizes, "vocab": 1000, "tokenizer": {"of": "tiny"}})
    with pytest.raises(ValidationError, match="of takes a tokenizer as it is"):
        Architecture.model_validate({**sizes, "tokenizer": {"of": "tiny", "lowercase": True}})


def test_a_store_without_its_tokenizer_is_refused(home: Registry, stores: Path) -> None:
    from train.launch import open_run

    recipe = TrainRecipe.model_validate(
        {"architecture": {"layers": 1, "hidden": 16, "heads": 2}, "data": {"store": stores / "train"}}
    )
    with pytest.raises(ConfigError, match="name its model or its folder"):
        open_run(recipe, None, None, home.settings.home / "run", {})
