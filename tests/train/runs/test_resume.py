"""A run that is killed, again and again, ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everlearn.bundles.bundle import file_entry
from everlearn.errors import Conflict
from tests.support.processes import start_run, weights_sha256
from tests.train.conftest import run
from train.launch import open_run
from train.recipe import TrainRecipe
from train.runs.identity import contents_of

KILLS = 5


def prepared(recipe: dict[str, Any], base: Path, run_dir: Path) -> Path:
    run_dir.mkdir(exist_ok=True)
    wanted = TrainRecipe.model_validate(recipe)
    open_run(wanted, base, None, run_dir, contents_of(wanted))
    return run_dir


def finished(run_dir: Path) -> str:
    """Lets the run end; the sha256 of its weights."""
    child = start_run(run_dir)
    child.join(1000)
    assert child.exitcode == 0
    return file_entry(run_dir / "model" / "model.safetensors").sha256


def steps_done(run_dir: Path) -> int:
    log = run_dir / "steps.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


LORA = {"method": "lora", "rank": 4, "dropout": 0.1}


@pytest.mark.parametrize("tune", [{"method": "full"}, LORA], ids=["full", "lora"])
def test_kills_at_random_moments_do_not_change_a_bit(
    base: Path, recipe: dict[str, Any], tmp_path: Path, tune: dict[str, Any]
) -> None:
    recipe |= {"tune": tune, "checkpoint": {"every_steps": 2}, "steps": 30}
    undisturbed = finished(prepared(recipe, base, tmp_path / "undisturbed"))
    run_dir = prepared(recipe, base, tmp_path / "killed")
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print(f"seed of the moments: {seed}")
    kills = 0
    for _ in range(KILLS):
        child = start_run(run_dir)
        step = moments.randint(1, 25)  # one that is behind it already kills it while it starts
        while child.is_alive() and steps_done(run_dir) < step:
            child.join(0.002)
        child.join(moments.uniform(0, 0.05))
        kills += child.exitcode is None
        child.kill()
        child.join()
    assert kills > 0
    assert finished(run_dir) == undisturbed
    steps = [json.loads(line)["step"] for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert not (run_dir / "checkpoints").exists()


def spoilt(name: str) -> Callable[[Path], None]:
    """What a dying machine leaves of the newest checkpoint."""

    def truncate(path: Path) -> None:
        file = max(path.glob("*.distcp"))
        file.write_bytes(file.read_bytes()[:-1])

    def flip(path: Path) -> None:
        file = max(path.glob("*.distcp"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def unmark(path: Path) -> None:
        (path / "state.json").unlink()

    def tear_mark(path: Path) -> None:
        file = path / "state.json"
        file.write_bytes(file.read_bytes()[:100])

    def lose(path: Path) -> None:
        (path / ".metadata").unlink()

    def unnamed(path: Path) -> None:
        path.rename(path.with_name(path.name.replace("step-", ".partial-")))

    return locals()[name]


@pytest.fixture(scope="module")
def two_checkpoints(
    base: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """A run that stopped with checkpoints at steps 3 and 6 of 8; its recipe; the weights it should end with."""
    recipe = {
        "data": {"store": str(stores / "train"), "held_store": str(stores / "held")},
        "sequence_tokens": 32,
        "batch_tokens": 64,
        "steps": 8,
        "dtype": "float32",
        "checkpoint": {"every_steps": 3},
    }
    folder = tmp_path_factory.mktemp("two")
    whole, _, _ = run(base, recipe, folder / "whole")
    seen: list[int] = []
    _, reports, result = run(
        base, recipe, folder / "half", should_stop=lambda: seen.append(0) or len(seen) == 6
    )
    assert not result.finished and len(reports) == 6
    return folder / "half", recipe, weights_sha256(dict(whole.named_parameters()))


@pytest.mark.parametrize("fault", ["truncate", "flip", "unmark", "tear_mark", "lose", "unnamed"])
def test_a_checkpoint_that_is_not_whole_is_ignored(
    base: Path, tmp_path: Path, two_checkpoints: tuple[Path, dict[str, Any], str], fault: str
) -> None:
    half, recipe, expected = two_checkpoints
    shutil.copytree(half, tmp_path / "run")
    spoilt(fault)(tmp_path / "run" / "checkpoints" / "step-00000006")
    model, reports, _ = run(base, recipe, tmp_path / "run")
    assert [report.step for report in reports] == [4, 5, 6, 7, 8]
    assert weights_sha256(dict(model.named_parameters())) == expected


def test_the_newest_whole_checkpoint_is_taken(
    base: Path, tmp_path: Path, two_checkpoints: tuple[Path, dict[str, Any], str]
) -> None:
    half, recipe, expected = two_checkpoints
    shutil.copytree(half, tmp_path / "run")
    moved = recipe | {"micro_batch": 2, "checkpoint": {"every_s": 1e9}}  # how, not what
    model, reports, result = run(base, moved, tmp_path / "run")
    assert [report.step for report in reports] == [7, 8]
    assert result.held_nll_before is not None
    assert weights_sha256(dict(model.named_parameters())) == expected


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(
    base: Path, tmp_path: Path, two_checkpoints: tuple[Path, dict[str, Any], str]
) -> None:
    half, recipe, _ = two_checkpoints
    shutil.copytree(half, tmp_path / "run")
    changed = recipe | {"seed": 7, "optimizer": {"lr": 5e-4}}
    with pytest.raises(Conflict) as caught:
        run(base, changed, tmp_path / "run")
    assert "optimizer.lr: 0.0001 → 0.0005" in caught.value.message
    assert "seed: 0 → 7" in caught.value.message
    with pytest.raises(Conflict, match="tokenizer: None → 'abc'"):
        run(base, recipe, tmp_path / "run", identity={"tokenizer": "abc"})


def test_a_run_folder_takes_no_other_recipe(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    prepared(recipe, base, tmp_path)
    prepared(recipe | {"ranks": 2, "parallel": "ddp"}, base, tmp_path)
    with pytest.raises(Conflict, match="steps: 20 → 21"):
        prepared(recipe | {"steps": 21}, base, tmp_path)
