"""CONTRIBUTING's example of an objective, registered as it says, trains a model by the run that a command starts."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import train.objectives
from tests.setup.test_layers import REPOSITORY
from train.launch import open_run
from train.objectives.table import OBJECTIVES, ObjectiveSpec
from train.recipe import TrainRecipe, validate_recipe
from train.run import train as train_run
from train.runs.identity import contents_of


def example(name: str) -> str:
    """The block of code that follows this mark in CONTRIBUTING.md."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found
    return found[1]


def entry() -> ObjectiveSpec:
    """The entry of the table that CONTRIBUTING.md shows."""
    call = ast.parse(example("entry").strip(), mode="eval").body
    assert isinstance(call, ast.Call)
    return ObjectiveSpec(*(ast.literal_eval(argument) for argument in call.args))


def test_the_objective_that_contributing_shows_trains_by_its_name_in_a_recipe(
    base: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = entry()
    (tmp_path / "smoothed.py").write_text(example("objective"))
    monkeypatch.setattr(train.objectives, "__path__", [*train.objectives.__path__, str(tmp_path)])
    monkeypatch.setitem(OBJECTIVES, spec.name, spec)
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {}
    for objective in ("causal-lm", spec.name):
        wanted = validate_recipe(TrainRecipe, recipe | {"objective": objective})
        run_dir = tmp_path / objective
        run_dir.mkdir()
        open_run(wanted, base, None, run_dir, contents_of(wanted))
        losses[objective] = []
        train_run(run_dir, lambda report, seen=losses[objective]: seen.append(report.loss), lambda: False)
        outcome = json.loads((run_dir / "outcome.json").read_bytes())
        assert outcome["recipe"]["objective"] == objective
        assert outcome["metrics"]["held_nll"] < outcome["metrics"]["held_nll_before"] - 1
        assert (run_dir / "model" / "model.safetensors").is_file()
    smoothed = losses[spec.name]
    assert len(smoothed) == 20 and smoothed[-1] < smoothed[0] - 1
    assert smoothed[-1] > losses["causal-lm"][-1] + 0.05  # the smoothing's price
