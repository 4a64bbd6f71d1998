"""Models in the formats of other runtimes: made, run there, compared with torch; and what is refused before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.runtimes import convert as conversion
from deploy.runtimes import environment
from deploy.runtimes.convert import convert
from deploy.runtimes.environment import interpreter_for
from deploy.runtimes.table import BOUND, RUNTIMES
from everlearn.errors import Conflict, InvalidInput, Unavailable, Unsupported
from everlearn.processes.child import run_child
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.deploy.runtimes.installed import each_runtime
from train.models.load import load_causal_lm

NEEDS_OPENVINO = each_runtime("openvino")


@pytest.mark.slow
@pytest.mark.parametrize("to", each_runtime())
def test_a_decoder_runs_there_with_torchs_logits(to: str, tiny_home: Settings, tmp_path: Path) -> None:
    out = tmp_path / "made"
    made = convert(tiny_home, "tiny", to, out)
    written = json.loads((out / "runtime.json").read_text())
    assert made["largest_difference"] <= BOUND and written["bound"] == BOUND and written["task"] == "generate"
    assert written["inputs"] == ["input_ids"] and written["output"] == "logits"
    assert (written["context"] is None) == (RUNTIMES[to].lengths == "any")
    assert {one["path"] for one in written["files"]} | {"runtime.json"} == {one.name for one in out.iterdir()}
    assert {name.strip() for name in RUNTIMES[to].files.split(",")} < {one.name for one in out.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("to", each_runtime("litert", "executorch", "openvino"))
def test_an_encoder_runs_there_with_torchs_embeddings(to: str, tiny_home: Settings, tmp_path: Path) -> None:
    made = convert(tiny_home, "encoder", to, tmp_path / "made")
    assert made["largest_difference"] <= BOUND
    assert (
        made["inputs"] == ["input_ids", "attention_mask", "token_type_ids"] and made["output"] == "embedding"
    )


@pytest.mark.parametrize("to", NEEDS_OPENVINO)
def test_a_graph_with_other_numbers_is_refused_and_nothing_is_left(
    to: str, tiny_home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = replace(RUNTIMES[to], backend="tests.deploy.runtimes.off_by_a_little")
    monkeypatch.setattr(conversion, "RUNTIMES", {**RUNTIMES, to: off})
    with pytest.raises(
        Unsupported, match=r"tiny@1 to OpenVINO IR: it computes something else: off from torch by"
    ):
        convert(tiny_home, "tiny", to, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", NEEDS_OPENVINO)
def test_the_folder_is_read_without_everlearn(to: str, tiny_home: Settings, tmp_path: Path) -> None:
    """As docs/other-runtimes.md shows it: two texts at once, of another length than was traced."""
    convert(tiny_home, "tiny", to, tmp_path / "made")
    openvino = import_module("openvino")
    model = openvino.Core().compile_model(
        tmp_path / "made" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    ids = np.arange(2 * 33).reshape(2, 33)
    registry = Registry(tiny_home)
    with torch.no_grad():
        torchs = load_causal_lm(registry.path(registry.resolve("tiny")))(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(model({"input_ids": ids})["logits"] - torchs).max() < BOUND


@pytest.mark.parametrize("to", NEEDS_OPENVINO)
def test_openvino_tells_its_maker_nothing(to: str) -> None:
    code = (
        "import deploy.runtimes.backends.openvino, openvino.tools.ovc.telemetry_utils as told\n"
        "print(told.tm.__name__)"
    )
    said = subprocess.run(
        [interpreter_for(to) or sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip().endswith("telemetry_stub")


def test_what_cannot_be_is_refused_before_any_work(tiny_home: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--context has no use for openvino"):
        convert(tiny_home, "tiny", "openvino", tmp_path / "made", context=64)
    with pytest.raises(Unsupported, match="encoder@1 is an encoder; JAX is offered for decoders"):
        convert(tiny_home, "encoder", "jax", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", NEEDS_OPENVINO)
def test_a_taken_folder_is_left_alone(to: str, tiny_home: Settings, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("kept")
    with pytest.raises(Conflict, match="is there already"):
        convert(tiny_home, "tiny", to, tmp_path / "made")
    assert (tmp_path / "made" / "mine").read_text() == "kept"


def test_a_missing_package_is_one_error_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "_own", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    with pytest.raises(Unavailable) as refused:
        interpreter_for("executorch")
    beside = tmp_path / ".venv-runtimes"
    said = f"ExecuTorch (XNNPACK) needs executorch==1.5.1: make install-runtimes puts them in {beside}"
    assert refused.value.message == said
    (beside / "bin").mkdir(parents=True)
    (beside / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(Unavailable, match=r"has not .*make install-runtimes renews it"):
        interpreter_for("executorch")
    (beside / "bin" / "python").unlink()
    (beside / "bin" / "python").write_text("no program")
    with pytest.raises(Unavailable, match=r"does not start .*make install-runtimes renews it"):
        interpreter_for("executorch")


def test_a_child_runs_in_the_environment_it_is_told(tmp_path: Path) -> None:
    """The interpreter is another one, everlearn the same."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    (tmp_path / "where.py").write_text(
        "import sys\nfrom everlearn.processes.child import answer\n"
        "answer(lambda request, progress: {'prefix': sys.prefix})\n"
    )
    sys.path.append(str(tmp_path))
    try:
        found = run_child("where", {}, silent, interpreter=str(tmp_path / "other" / "bin" / "python"))
    finally:
        sys.path.remove(str(tmp_path))
    assert found == {"prefix": str(tmp_path / "other")}


@pytest.mark.slow
@pytest.mark.parametrize("to", each_runtime("jax"))
def test_the_functions_beside_the_weights_continue_a_text_as_torch_does(
    to: str, tiny_home: Settings, tmp_path: Path
) -> None:
    """Each token from the cache of the earlier ones, by the folder's own model.py."""
    convert(tiny_home, "tiny", to, tmp_path / "made")
    code = "import numpy, model; print(model.greedy(*model.load('.'), numpy.array([[5, 90, 33]]), tokens=8))"
    argv = [interpreter_for(to) or sys.executable, "-c", code]
    said = subprocess.run(argv, cwd=tmp_path / "made", capture_output=True, text=True, check=True).stdout
    registry = Registry(tiny_home)
    decoder = load_causal_lm(registry.path(registry.resolve("tiny")))
    ids = torch.tensor([[5, 90, 33]])
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, decoder(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert json.loads(said) == ids[0, 3:].tolist()
