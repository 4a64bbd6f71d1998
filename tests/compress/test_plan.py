"""Prune, heal and quantize in one plan: a version each, done once, and refused before any work where it cannot be."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress import export
from compress.plan import follow
from compress.recipe import Calibration, CompressPlan, read_plan
from everlearn.cli.commands import app
from everlearn.errors import ConfigError, InvalidInput, NotFound, Unavailable
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.evaluate.held_out_text import held_out_text

PLAN = """\
calibration: {tokens: 1024}
prune: {layers: 1, ffn: 64}
heal: {data: {train: [corpus.txt], held_fraction: 0.2}, sequence_tokens: 128, batch_tokens: 512, steps: 8,
       optimizer: {lr: 0.003}}
targets:
  - {to: int4-onnx}
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(held_out_text().text)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_each_step_is_a_version_made_of_the_one_before_and_is_not_done_twice(
    tiny_settings: Settings, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(plan_file)
    registry = Registry(tiny_settings)
    parent = registry.resolve("tiny@1")
    smaller, healed, int4 = follow(tiny_settings, "tiny@1", plan)
    assert [one.format for one in (smaller, healed, int4)] == ["safetensors", "safetensors", "onnx-genai"]
    assert [one.parent_digest for one in (smaller, healed, int4)] == [
        parent.digest,
        smaller.digest,
        healed.digest,
    ]
    assert smaller.manifest.recipe["prune"]["dropped"] in ([0], [1])
    for made in (smaller.manifest.recipe["prune"], healed.manifest.metrics):
        assert all(after <= before for before, after in made["reconstructed"].values())
    assert smaller.manifest.recipe["prune"]["reconstructed"].keys() == {"0"}
    assert smaller.manifest.parameters is not None and parent.manifest.parameters is not None
    assert smaller.manifest.parameters < parent.manifest.parameters
    assert healed.manifest.recipe["distill"]["teacher"] == "tiny@1"
    assert healed.manifest.metrics["held_nll"] < healed.manifest.metrics["held_nll_before"]
    assert smaller.manifest.metrics["divergence"] > 0
    again = [one.ref for one in follow(tiny_settings, "tiny@1", plan)]
    assert again == [one.ref for one in (smaller, healed, int4)]
    monkeypatch.setenv("EVERLEARN_HOME", str(tiny_settings.home))
    said = CliRunner().invoke(app, ["compress", "tiny@1", "--recipe", str(plan_file)]).output
    assert f"on its held-out text, after {healed.manifest.metrics['held_perplexity']}" in " ".join(
        said.split()
    )
    assert f"{int4.ref}: onnx-genai" in said and f", of {healed.ref}\n" in said
    assert said.endswith(f"Beside the original: everlearn compare tiny@1 {int4.ref}\n")


def test_zeros_make_a_version_of_the_same_size(tiny_settings: Settings) -> None:
    plan = CompressPlan.model_validate({"prune": {"sparsity": 0.3, "method": "magnitude"}})
    (version,) = follow(tiny_settings, "tiny@1", plan)
    assert version.manifest.recipe["prune"]["zeros"] == pytest.approx(0.3, abs=0.01)
    parent = Registry(tiny_settings).resolve("tiny@1")
    assert version.manifest.parameters == parent.manifest.parameters


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("targets: []", "name at least one of targets"),
        ("heal: {data: {train: [a.txt]}}\ntargets: [{to: w8a8}]", "heal is for a model that lost something"),
        ("prune: {layer: 3}", r"unknown recipe key 'prune.layer'.*prune.layers"),
        ("targets: [{to: int4-onnx, weights: awq}]", "awq makes w4a16, not int4-onnx"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_its_reason(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_that_would_fail_after_hours_fails_at_once(
    tiny_settings: Settings, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(plan_file)
    before = len(Registry(tiny_settings).versions("tiny"))

    def refused(changed: CompressPlan) -> str:
        with pytest.raises((InvalidInput, NotFound, Unavailable)) as error:
            next(follow(tiny_settings, "tiny@1", changed))
        return error.value.message

    (short := plan_file.with_name("short.txt")).write_text("too short")
    calibration = Calibration(text=short)
    said = refused(plan.model_copy(update={"calibration": calibration}))
    assert said.startswith("the calibration text ")
    assert "the text has" in said
    plan_file.with_name("corpus.txt").unlink()
    assert "no such file" in refused(plan)
    plan_file.with_name("corpus.txt").write_text(held_out_text().text)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert "are needed. Nothing was begun" in refused(plan)
    assert len(Registry(tiny_settings).versions("tiny")) == before


def test_a_compressed_version_is_no_parent(tiny_settings: Settings) -> None:
    version = export.export_onnx(tiny_settings, "tiny@1", "int8-onnx")
    plan = CompressPlan.model_validate({"prune": {"layers": 1}})
    with pytest.raises(Exception, match=f"{version.ref} is onnx-genai; its float weights are tiny@1"):
        next(follow(tiny_settings, version.ref, plan))


def test_the_command_line_makes_what_its_help_says(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tiny_settings.home))
    said = CliRunner().invoke(app, ["compress", "tiny@1", "--json"])
    assert said.exit_code == 0, said.output
    (made,) = [
        one for one in Registry(tiny_settings).versions("tiny") if one.ref == json.loads(said.stdout)["ref"]
    ]
    assert made.manifest.recipe["export"]["head_bits"] == 8
    assert made.manifest.recipe["export"]["to"] == "int4-onnx"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--target", "60MB"], "size<=60MB"),
        (["--target", "size<=1MB", "--to", "w8a8"], "leave --to"),
        (["--target", "size<=1MB", "--kv-cache", "int8"], "leave --to, --weights, --kv-cache"),
        (["--to", "w8a8", "--kv-cache", "int8"], "kv_cache: int8 is for int4-onnx and int8-onnx, not w8a8"),
        (["--to", "int8-onnx", "--weights", "gptq"], "gptq makes int4-onnx or w4a16, not int8-onnx"),
        (["--recipe", "missing.yaml"], "missing.yaml"),
    ],
)
def test_the_command_line_refuses_what_cannot_be(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fault: str
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tiny_settings.home))
    said = CliRunner().invoke(app, ["compress", "tiny@1", *arguments])
    assert said.exit_code == 2, said.output
    assert fault in " ".join(said.output.split())
