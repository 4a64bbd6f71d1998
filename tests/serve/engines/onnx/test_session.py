"""A graph that cannot run on this machine ends its engine in one sentence, and is not tried again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from everlearn.bundles.bundle import write_bundle
from everlearn.errors import ConfigError
from serve.engines.onnx import session
from tests.support.tiny_models import train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[4]


def graph(operators: int) -> bytes:
    """One that asks for a version of onnxruntime's own operators."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", operators)]
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=versions, ir_version=10)
    return made.SerializeToString()


def test_an_onnxruntime_that_is_too_old_for_a_bundle_is_told_in_one_sentence(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(graph(operators=9))
    (bundle / "config.json").write_text(json.dumps({"max_position_embeddings": 16}))
    train_tokenizer().save(str(bundle / "tokenizer.json"))
    write_bundle(bundle, name="x", format="onnx", task="embed", architecture="BertModel", parameters=None)
    command = [sys.executable, "-m", "serve.engines.onnx", "--model", "x"]
    done = subprocess.run(
        [*command, "--bundle", str(bundle), "--uds", str(tmp_path / "s")],
        capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY,
        env=os.environ | {"EVERLEARN_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 2  # what would come again is not tried again
    assert f"onnxruntime {ort.__version__} does not load the model's graph" in done.stderr
    assert "Upgrade onnxruntime" in done.stderr and "Traceback" not in done.stderr


def test_a_model_larger_than_the_machines_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(graph(operators=1))
    with (tmp_path / "model.onnx.data").open("wb") as file:
        file.truncate(3 * 10**9)
    session.open_session(tmp_path / "model.onnx", tmp_path, ort.SessionOptions())
    monkeypatch.setattr(session, "physical_bytes", lambda: 2 * 10**9)
    with pytest.raises(ConfigError, match=r"take 3\.0 GB and this machine has 2\.0 GB of memory"):
        session.open_session(tmp_path / "model.onnx", tmp_path, ort.SessionOptions())
