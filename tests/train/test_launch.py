"""Runs in processes of their own: started, watched, stopped, killed; and the command around them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.errors import Stopped
from train.evaluate.held_out_text import held_out_text
from train.launch import launch
from train.recipe import TrainRecipe

REPOSITORY = Path(__file__).resolve().parents[2]

LAUNCH = """
import json, sys
from pathlib import Path
from train.launch import launch
from train.recipe import TrainRecipe
recipe, base, run_dir = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
launch(
    TrainRecipe.model_validate(recipe), model_dir=base, tokenizer_dir=None, run_dir=run_dir,
    on_step=lambda report: print(report["step"], flush=True),
)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation of this test's own, that commands find."""
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Settings(home=tmp_path / "home")


def everlearn(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.output


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of living processes that name the run folder."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if str(run_dir).encode() in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def test_a_model_is_trained_from_scratch_with_its_tokenizer(home: Settings, tmp_path: Path) -> None:
    paragraphs = held_out_text().text.split("\n\n")
    lines = [json.dumps({"text": text}) for text in paragraphs]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    recipe = {
        "name": "mine",
        "architecture": {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "context": 128, "vocab": 400},
        "data": {"train": ["texts.jsonl"], "held_fraction": 0.1},
        "sequence_tokens": 128,
        "batch_tokens": 512,
        "steps": 12,
        "optimizer": {"lr": 5e-3},
        "threads": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = everlearn("train", "recipe.yaml", "--json")
    registry = Registry(home)
    version = registry.resolve("mine@1")
    assert '"ref": "mine@1"' in said
    made = version.manifest
    assert (made.parent, made.architecture, made.format) == (None, "LlamaForCausalLM", "safetensors")
    assert made.recipe["train"]["optimizer"]["lr"] == 5e-3
    assert made.recipe["train"]["dtype"] in ("float32", "bfloat16")
    assert made.metrics["held_perplexity"] < made.metrics["held_perplexity_before"] / 1.5
    directory = registry.path(version)
    assert LlamaForCausalLM.from_pretrained(directory).num_parameters() == made.parameters
    assert AutoTokenizer.from_pretrained(directory).decode([300])
    assert "mine@1" in everlearn("train", "recipe.yaml")
    assert len(registry.versions("mine")) == 1, "a finished run is not registered again"


def test_a_bundle_is_trained_on_and_a_diverging_run_registers_nothing(
    home: Settings, tmp_path: Path, base: Path, recipe: dict[str, Any]
) -> None:
    parent = import_model(home, str(base), name="tiny")
    recipe |= {"base": "tiny", "tune": {"method": "lora", "rank": 4}, "steps": 5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    everlearn("train", "recipe.yaml")
    registry = Registry(home)
    made = registry.resolve("tiny@2").manifest
    assert made.parent == parent.digest
    assert made.recipe["train"]["tune"]["rank"] == 4
    assert made.parameters == parent.manifest.parameters
    said = everlearn(
        "train", "recipe.yaml", "--set", "optimizer.lr=1e25", "--set", "optimizer.clip=0", exit_code=1
    )
    assert "nothing was registered" in said
    assert len(registry.versions("tiny")) == 2


def test_a_run_stops_when_asked_and_goes_on_in_the_same_folder(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    wanted = TrainRecipe.model_validate(recipe | {"steps": 300, "batch_tokens": 64})
    folders = {"model_dir": base, "tokenizer_dir": None, "run_dir": tmp_path / "run"}
    steps: list[int] = []
    with pytest.raises(Stopped, match="stopped at step"):
        launch(
            wanted,
            **folders,
            on_step=lambda report: steps.append(report["step"]),
            should_stop=lambda: len(steps) > 2,
        )
    stopped_at = steps[-1]
    assert stopped_at < 300
    outcome = launch(wanted, **folders, on_step=lambda report: steps.append(report["step"]))
    assert steps == list(range(1, 301)), "every step was done once"
    assert outcome.metrics["steps"] == 300
    again = launch(wanted, **folders, on_step=lambda report: pytest.fail("it trained again"))
    assert again == outcome


def test_ranks_end_with_the_parent_and_the_next_start_goes_on(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe |= {"parallel": "fsdp2", "ranks": 2, "steps": 60, "batch_tokens": 128, "threads": 2}
    recipe |= {"checkpoint": {"every_steps": 5}}
    run_dir = tmp_path / "run"
    parent = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, json.dumps(recipe), str(base), str(run_dir)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert parent.stdout
    for line in parent.stdout:
        if int(line) == 12:
            break
    assert len(processes_of(run_dir)) >= 4  # the parent, torchrun, two ranks
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while processes_of(run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(run_dir)
    steps: list[int] = []
    outcome = launch(
        TrainRecipe.model_validate(recipe),
        model_dir=base,
        tokenizer_dir=None,
        run_dir=run_dir,
        on_step=lambda report: steps.append(report["step"]),
    )
    assert steps[0] > 1 and steps[-1] == 60
    assert outcome.metrics["held_nll"] < outcome.metrics["held_nll_before"]
    assert LlamaForCausalLM.from_pretrained(outcome.directory)
