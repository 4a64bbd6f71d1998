"""What the file leaves out is there again when onnxruntime has loaded it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from compress.build_decoder import build_graph
from compress.slim_graph import halved, rotary_frequencies, slim
from everlearn.progress import silent
from train.evaluate import onnx_logits


@pytest.fixture(scope="session")
def plain(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder's own graph."""
    directory = tmp_path_factory.mktemp("plain")
    request = {
        "model_dir": str(parent),
        "directory": str(directory),
        "cache_dir": str(directory / "cache"),
        "precision": "int4",
        "options": ["block_size=32", "accuracy_level=1", "shared_embeddings=true", "fuse_mlp_gate_up=true"],
    }
    build_graph(request, silent)
    return directory


def test_a_slim_graph_is_smaller_and_predicts_the_same(plain: Path, parent: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "slim"))
    slim(directory / "model.onnx", json.loads((parent / "config.json").read_text()))
    sizes = [(one / "model.onnx.data").stat().st_size for one in (plain, directory)]
    assert sizes[1] < 0.8 * sizes[0]
    windows = np.random.default_rng(0).integers(3, 512, (3, 200))
    for before, after in zip(onnx_logits(plain, windows), onnx_logits(directory, windows), strict=True):
        assert np.abs(before - after).max() < 0.005 * np.abs(before).max()
        assert (before.argmax(-1) == after.argmax(-1)).mean() > 0.97


def test_onnxruntime_folds_all_of_it_before_it_runs(plain: Path, parent: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "slim"))
    slim(directory / "model.onnx", json.loads((parent / "config.json").read_text()))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "run.onnx", load_external_data=False).graph
    assert not {"Range", "Cos", "Sin"} & {node.op_type for node in graph.node}
    held = {tensor.name: tensor for tensor in graph.initializer}
    scales = [node.input[2] for node in graph.node if node.op_type == "MatMulNBits"]
    assert scales and all(held[name].data_type == onnx.TensorProto.FLOAT for name in scales)


def test_scales_that_float16_cannot_hold_stay_as_they_are() -> None:
    good = np.array([[0.01, -0.5], [3e-3, 1e-8]], np.float32)
    half = halved(good)
    assert half is not None and np.allclose(half, good, rtol=2**-11, atol=1e-7)
    assert halved(good * 1e-6) is None, "all below float16's normal numbers"
    assert halved(good * 1e6) is None, "beyond its largest"


def test_tables_that_are_not_plain_rotary_positions_stay(plain: Path, parent: Path) -> None:
    tensors = {
        one.name: numpy_helper.to_array(one) for one in onnx.load(plain / "model.onnx").graph.initializer
    }
    config = json.loads((parent / "config.json").read_text())
    assert rotary_frequencies(config, tensors) is not None
    stretched = {**tensors, "cos_cache": np.roll(tensors["cos_cache"], 1, axis=0)}
    assert rotary_frequencies(config, stretched) is None
    assert rotary_frequencies({**config, "rope_parameters": {"rope_theta": 5e5}}, tensors) is None
