"""One table of objectives: recipes, the command's help and the docs say what it says, and batches hold what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everlearn.errors import ConfigError
from tests.train.objectives.objective_table import generated, written
from train.data.packing import Packer
from train.data.store import open_store
from train.objectives.causal import CausalLM
from train.objectives.keep import Keeping
from train.objectives.objective import RunInputs, objective_for
from train.objectives.table import OBJECTIVES, PACKED, find_objective, register_objective, trainable
from train.recipe import TrainRecipe, deciding, recipe_diff, validate_recipe


def test_the_docs_have_the_table_of_objectives() -> None:
    assert written() == generated(), "run python -m tests.train.objectives.objective_table"


def test_every_objective_of_the_table_is_a_class_that_can_be_called() -> None:
    generated()  # which imports the rooms that register objectives
    assert len(OBJECTIVES) >= 5
    for spec in OBJECTIVES.values():
        found = spec.load()
        assert isinstance(found, type) and any("__call__" in vars(one) for one in found.__mro__)
    assert all(hasattr(spec.load(), "for_run") for spec in trainable())


def test_the_objective_that_a_recipe_names_or_implies_is_the_one_that_trains(
    base: Path, recipe: dict[str, Any], stores: Path
) -> None:
    keep = {"keep": {"store": str(stores / "held")}}
    for said, kind, name in (
        ({}, CausalLM, "causal-lm"),
        ({"objective": "causal-lm"}, CausalLM, "causal-lm"),
        (keep, Keeping, "keep"),
        (keep | {"objective": "keep"}, Keeping, "keep"),
    ):
        wanted = validate_recipe(TrainRecipe, recipe | said)
        packer = Packer(open_store(stores / "train"), wanted.sequence_tokens, wanted.seed)
        held_out = Packer(open_store(stores / "held"), wanted.sequence_tokens, 0)
        training = objective_for(RunInputs(wanted, packer, held_out, base, torch.device("cpu"), base))
        assert type(training.objective) is kind and wanted.objective_spec.name == name
        assert tuple(training.batches.batch(0, 4)) == wanted.objective_spec.batch
        assert training.validation and type(training.validation.objective) is CausalLM


def test_an_objective_that_a_recipe_implies_anyway_makes_no_other_run(recipe: dict[str, Any]) -> None:
    """Runs and checkpoints begun before the key was there go on."""
    implied = validate_recipe(TrainRecipe, recipe).model_dump(mode="json")
    named = validate_recipe(TrainRecipe, recipe | {"objective": "causal-lm"}).model_dump(mode="json")
    earlier = {key: value for key, value in implied.items() if key != "objective"}
    assert deciding(earlier) == deciding(implied) == deciding(named)
    assert recipe_diff(earlier, named) == []
    assert recipe_diff(earlier, named | {"objective": "keep"}) == ["objective: None → 'keep'"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"objective": "causal-llm"},
            "objective: known objectives are causal-lm, masked-lm, span-corruption, seq2seq, keep, ",
        ),
        ({"objective": ""}, "known objectives are causal-lm, masked-lm, span-corruption, seq2seq, keep"),
        ({"objective": "distillation"}, "distillation is run by everlearn distill, not by everlearn train"),
        ({"objective": "keep"}, "objective: keep needs the key keep"),
        (
            {"objective": "causal-lm", "keep": {"store": "x"}},
            "keep sets up objective: keep, and objective is causal-lm",
        ),
    ],
)
def test_an_objective_that_a_recipe_cannot_have_is_refused(
    recipe: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    generated()
    with pytest.raises(ConfigError) as caught:
        validate_recipe(TrainRecipe, recipe | said)
    assert message in caught.value.message


def test_two_objectives_cannot_have_one_name() -> None:
    known = find_objective("causal-lm")
    register_objective(known)
    with pytest.raises(ValueError, match="already is an objective causal-lm"):
        register_objective(replace(known, implementation="train.objectives.keep:Keeping"))
    assert OBJECTIVES["causal-lm"] is known and known.batch == PACKED


def test_the_help_lists_objectives_without_pydantic_and_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from train.cli import commands\n"
        "assert CliRunner().invoke(commands, ['--help']).exit_code == 0 and 'pydantic' not in sys.modules\n"
        "print(CliRunner().invoke(commands, ['train', '--help'], env={'COLUMNS': '400'}).output)\n"
        "import train.recipe; assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    shown = re.sub(r"[\s│]", "", said)
    for spec in trainable():
        assert re.sub(r"\s", "", f"{spec.name}: {spec.summary}") in shown
