"""However many processes train, it is the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import fitted, in_ranks

STEPS = 50


@pytest.fixture(scope="module")
def alone(
    base: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], str, float]:
    """One process without a group."""
    return in_ranks(1, fitted, curve_recipe(stores, "none", 1), base, tmp_path_factory.mktemp("alone"))[0]


def curve_recipe(stores: Path, parallel: str, ranks: int) -> dict[str, Any]:
    return {
        "data": {"store": str(stores / "train"), "held_store": str(stores / "held")},
        "sequence_tokens": 32,
        "batch_tokens": 128,
        "micro_batch": 1,
        "steps": STEPS,
        "optimizer": {"lr": 3e-3},
        "dtype": "float32",
        "parallel": parallel,
        "ranks": ranks,
        "gradient_checkpointing": parallel == "fsdp2",
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_any_number_of_ranks_gives_the_loss_curve_of_one_process(
    base: Path, stores: Path, tmp_path: Path, alone: tuple[list[float], str, float], parallel: str, ranks: int
) -> None:
    results = in_ranks(ranks, fitted, curve_recipe(stores, parallel, ranks), base, tmp_path)
    losses, _, held = results[0]
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, alone[0], atol=1e-4, rtol=0)
    assert losses[-1] < losses[0] / 1.3
    assert held == pytest.approx(alone[2], abs=1e-4)


@pytest.mark.parametrize("before, after", [("fsdp2", "fsdp2"), ("ddp", "fsdp2")])
def test_a_checkpoint_of_four_ranks_is_resumed_by_two(
    base: Path, stores: Path, tmp_path: Path, alone: tuple[list[float], str, float], before: str, after: str
) -> None:
    first = in_ranks(4, fitted, curve_recipe(stores, before, 4), base, tmp_path, 20)[0]
    second = in_ranks(2, fitted, curve_recipe(stores, after, 2), base, tmp_path)[0]
    assert (len(first[0]), len(second[0])) == (20, STEPS - 20)
    np.testing.assert_allclose(first[0] + second[0], alone[0], atol=1e-4, rtol=0)


def test_lora_on_shares_of_the_model_gives_the_loss_curve_of_the_whole(
    base: Path, stores: Path, tmp_path: Path
) -> None:
    recipe = curve_recipe(stores, "none", 1) | {"tune": {"method": "lora", "rank": 4}, "steps": 15}
    whole = in_ranks(1, fitted, recipe, base, tmp_path / "whole")[0]
    shared = in_ranks(2, fitted, recipe | {"parallel": "fsdp2", "ranks": 2}, base, tmp_path / "shared")[0]
    np.testing.assert_allclose(shared[0], whole[0], atol=1e-4, rtol=0)
