"""The graph that is written: the builder's, with our weights, and nothing in the file that loading makes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from compress.export import build_export, decoder_options, decoder_request
from compress.parent_files import keep_tokenizer
from compress.quantize.blocks import Quantized, round_to_nearest
from compress.quantize.matrices import Matrices
from compress.recipe import Calibration, CompressRecipe
from compress.targets import onnx_decoder
from compress.targets.quantized_graph import halved, quantize_graph
from compress.targets.table import TARGETS
from everlearn.errors import Unsupported
from tests.support.tiny_models import TINY
from train.evaluate.logits import onnx_logits

INT4 = CompressRecipe(to="int4-onnx", head_bits=4)


@pytest.fixture(scope="session")
def plain(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder's own graph, with its own quantizer."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    directory = tmp_path_factory.mktemp("plain")
    options = decoder_options(parent, TARGETS["int4-onnx"])
    options = [one for one in options if "shared" not in one] + ["shared_embeddings=true"]
    where = ("", str(parent), str(directory), "int4", "cpu", str(directory / "cache"))
    create_model(*where, **parse_extra_options(*where, options))
    return directory


@pytest.fixture(scope="session")
def ours(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ours")
    build_export(parent, directory, "generate", INT4)
    return directory


def test_our_graph_is_smaller_than_the_builders_and_predicts_the_same(plain: Path, ours: Path) -> None:
    sizes = [(one / "model.onnx.data").stat().st_size for one in (plain, ours)]
    assert sizes[1] < 0.8 * sizes[0]
    windows = np.random.default_rng(0).integers(3, 512, (3, 200))
    for before, after in zip(onnx_logits(plain, windows), onnx_logits(ours, windows), strict=True):
        assert np.abs(before - after).max() < 0.1 * np.abs(before).max()  # the kernels round activations
        assert (before.argmax(-1) == after.argmax(-1)).mean() > 0.9


def test_onnxruntime_folds_all_that_the_graph_computes_before_it_runs(ours: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(ours / "model.onnx"), options, providers=["CPUExecutionProvider"])
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


SHAPE: dict[str, Any] = TINY | {
    "head_dim": 16,
    "initializer_range": 0.1,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2, biases": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3, norms of queries": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "mistral, a window": MistralConfig(**SHAPE, tie_word_embeddings=False, sliding_window=700),
    "phi3, stacked already": Phi3Config(
        **SHAPE, tie_word_embeddings=False, original_max_position_embeddings=1024
    ),
    "gemma2, scaled embedding": Gemma2Config(**SHAPE, tie_word_embeddings=True, query_pre_attn_scalar=16),
    "qwen2, odd width": Qwen2Config(**{**SHAPE, "hidden_size": 72, "intermediate_size": 100}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_its_parent_at_8_bits(family: str, parent: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.endswith("bias"):
                one.normal_(std=0.3)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    keep_tokenizer(parent, tmp_path / "model")
    (tmp_path / "made").mkdir()
    _, metrics = build_export(
        tmp_path / "model", tmp_path / "made", "generate", CompressRecipe(to="int8-onnx")
    )
    assert metrics["divergence"] < 0.01
    assert metrics["agreement"] > 0.9
    graph = onnx.load(tmp_path / "made" / "model.onnx", load_external_data=False).graph
    assert "MatMul" not in {node.op_type for node in graph.node}
    said = json.loads((tmp_path / "made" / "genai_config.json").read_text())["model"]
    assert said["context_length"] == 1024


def product(name: str, weight: torch.Tensor) -> ir.Model:
    """A graph of one product with weight (out, in)."""
    tensor = ir.tensor(weight.T.contiguous().numpy(), name="weight")
    held = ir.Value(name="weight", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", weight.shape[1]]))
    node = ir.node("MatMul", [given, held], name=name)
    graph = ir.Graph([given], node.outputs, nodes=[node], initializers=[held], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def test_a_product_with_another_matrix_than_its_name_says_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, name = torch.randn(48, 64), "model.layers.0.self_attn.o_proj"
    matrices = Matrices(tmp_path)
    matrices[name] = round_to_nearest(weight)
    quantize_graph(product("/model/layers.0/attn/o_proj/MatMul", weight), matrices)
    with pytest.raises(Unsupported, match="not with the layer of that name"):
        quantize_graph(product("/model/layers.0/attn/o_proj/MatMul", torch.randn(48, 64)), matrices)
    with pytest.raises(Unsupported, match="no layer of the model"):
        quantize_graph(product("/model/layers.0/router/MatMul", weight), matrices)


def test_an_interrupted_quantization_goes_on_where_it_was(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run solves for nothing that the first one had, and makes the same bytes."""
    recipe = CompressRecipe(
        to="int4-onnx", weights="gptq", high_precision_fraction=0.1, calibration=Calibration(tokens=1024)
    )
    kept = Matrices.__setitem__
    solved: list[str] = []

    def stops(self: Matrices, name: str, matrix: Quantized) -> None:
        if len(solved) == 6:
            raise KeyboardInterrupt
        solved.append(name)
        kept(self, name, matrix)

    request = decoder_request(parent, tmp_path, recipe, tmp_path / "scratch")
    monkeypatch.setattr(Matrices, "__setitem__", stops)
    with pytest.raises(KeyboardInterrupt):
        onnx_decoder.quantize(parent, request, lambda *_: None)
    monkeypatch.setattr(Matrices, "__setitem__", kept)
    first = set(solved)
    measured = []
    matrices, _ = onnx_decoder.quantize(parent, request, lambda step, _done=None: measured.append(step))
    assert len(first) == 6 and "measuring each layer" not in measured
    whole, _ = onnx_decoder.quantize(parent, {**request, "scratch": str(tmp_path / "anew")}, lambda *_: None)
    assert set(matrices) == set(whole) > first
    for name in whole:
        assert whole.file(name).read_bytes() == matrices.file(name).read_bytes(), name
