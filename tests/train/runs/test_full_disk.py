"""A disk that takes nothing more: one error that says where and what to do, nothing half, and the run goes on."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import Unavailable
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.train.conftest import run
from train.launch import launch
from train.models.save import write_model
from train.recipe import TrainRecipe


@contextmanager
def no_file_larger_than(size_bytes: int) -> Generator[None]:
    """For this process and its children; the model of these tests has 403 KB, its checkpoints 1.2 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def half_written(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*partial*")]


@pytest.fixture
def recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe | {"steps": 4, "checkpoint": {"every_steps": 2}}


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on_later(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed, _, _ = run(base, recipe, tmp_path / "undisturbed")
    with (
        no_file_larger_than(330_000),
        pytest.raises(Unavailable, match="a checkpoint could not be written: "),
    ):
        run(base, recipe, tmp_path / "run")
    assert not half_written(tmp_path)
    again, reports, _ = run(base, recipe, tmp_path / "run")
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in undisturbed.named_parameters())


def test_a_model_that_cannot_be_written_is_told_and_leaves_nothing(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    wanted = TrainRecipe.model_validate(recipe)
    arguments = (None, wanted, base, base, tmp_path / "model")
    with (
        no_file_larger_than(330_000),
        pytest.raises(Unavailable, match=r"model could not be written: .*too large"),
    ):
        write_model(LlamaForCausalLM.from_pretrained(base), *arguments)
    assert list(tmp_path.iterdir()) == []
    write_model(LlamaForCausalLM.from_pretrained(base), *arguments)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """1.1 MB; ``mount -o remount,size=…`` makes it larger."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", mount], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def test_a_full_disk_is_told_as_full_with_its_folder_and_a_way_out(
    base: Path, recipe: dict[str, Any], small_disk: Path
) -> None:
    wanted = TrainRecipe.model_validate(recipe)
    folders = {"model_dir": base, "tokenizer_dir": None, "run_dir": small_disk / "run"}
    with pytest.raises(Unavailable) as caught:
        launch(wanted, **folders)
    message = caught.value.message
    assert "a checkpoint could not be written: " in message and "No space left on device" in message
    assert f"The disk of {small_disk / 'run'} has" in message and "make room" in message
    assert not half_written(small_disk)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    made = launch(wanted, **folders)
    assert made.metrics["steps"] == 4 and LlamaForCausalLM.from_pretrained(made.directory)


def test_a_disk_without_any_room_is_told_before_the_work(
    base: Path, recipe: dict[str, Any], small_disk: Path
) -> None:
    with (small_disk / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    wanted = TrainRecipe.model_validate(recipe)
    with pytest.raises(Unavailable, match=r"No space left on device.*make room"):
        launch(wanted, model_dir=base, tokenizer_dir=None, run_dir=small_disk / "run")


def test_an_import_that_cannot_write_names_the_disk_that_is_full(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("EVERLEARN_HOME", str(home))
    source = shutil.copytree(base, tmp_path / "source")
    Registry(Settings(home=home)).list()  # the database is there
    with no_file_larger_than(330_000):
        said = CliRunner().invoke(app, ["import", str(source), "--name", "tiny"])
    assert said.exit_code == 1
    output = said.output.replace("\n", "")
    assert str(home) in output and "make room there" in output and "Traceback" not in output
    assert not [path for path in home.rglob("*") if path.suffix == ".safetensors"]
    assert CliRunner().invoke(app, ["import", str(source), "--name", "tiny"]).exit_code == 0
    assert Registry(Settings(home=home)).resolve("tiny").ref == "tiny@1"
