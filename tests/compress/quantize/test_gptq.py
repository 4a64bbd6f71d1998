"""GPTQ against its own theory, and its weights from the algorithm to the bytes that onnxruntime multiplies by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from compress.export import build_export, recipe_of, write_export
from compress.quantize.blocks import Quantized, round_to_nearest
from compress.quantize.calibration import calibration_windows
from compress.quantize.gptq import DAMPING, gptq, quantize_model
from compress.quantize.matrices import packed, unpacked
from compress.quantize.sensitivity import most_sensitive, stacked
from compress.recipe import Calibration, CompressRecipe
from everlearn.errors import Unsupported
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.models.load import load_causal_lm

RECIPE = CompressRecipe(
    to="int4-onnx", weights="gptq", high_precision_fraction=0, calibration=Calibration(tokens=4096)
)


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """A weight (48, 96), and 2000 inputs (2000, 96) whose columns depend on each other, as a real layer's do."""
    torch.manual_seed(0)
    inputs = torch.randn(2000, 96) @ torch.randn(96, 96) + 0.5 * torch.randn(2000, 96)
    return torch.randn(48, 96) * 0.05, inputs


@pytest.fixture(scope="module")
def built(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    directory = tmp_path_factory.mktemp("gptq")
    return directory, *build_export(parent, directory, "generate", RECIPE)


@pytest.fixture(scope="module")
def matrices(parent: Path) -> dict[str, Quantized]:
    """The same quantization once more, in this process."""
    made: dict[str, Quantized] = {}
    windows = calibration_windows(RECIPE.calibration, parent / "tokenizer.json")
    quantize_model(load_causal_lm(parent), torch.from_numpy(windows), made, bits={"lm_head": 8})
    return made


def test_the_layers_output_is_nearer_than_by_rounding(layer: tuple[Tensor, Tensor]) -> None:
    weight, inputs = layer
    errors = [
        ((weight - one.weight()) @ inputs.T).square().sum().item()
        for one in (gptq(weight, inputs.T @ inputs), round_to_nearest(weight))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_uncorrelated_inputs_leave_nothing_to_repair() -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 96)
    ours = gptq(weight, torch.eye(96))
    scales = ours.scales.repeat_interleave(32, dim=1)
    assert torch.equal(ours.codes, ((weight / scales).round().clamp(-8, 7) + 8).to(torch.uint8))
    assert (weight - ours.weight()).norm() < (weight - round_to_nearest(weight).weight()).norm()


def test_each_column_moves_the_others_as_optimal_brain_surgeon_says(layer: tuple[Tensor, Tensor]) -> None:
    """The reference inverts the Hessian of the columns that are left, in float64, at every step."""
    weight, inputs = layer
    hessian = inputs.T @ inputs
    ours = gptq(weight, hessian)
    damped = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    left = weight.double()
    scales = ours.scales.double().repeat_interleave(32, dim=1)
    codes = torch.empty_like(left)
    for column in range(96):
        rounded = (left[:, column] / scales[:, column]).round().clamp(-8, 7)
        codes[:, column] = rounded + 8
        inverse = torch.linalg.inv(damped[column:, column:])
        error = (left[:, column] - rounded * scales[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0][None]
    assert (ours.codes != codes).float().mean() < 0.002, "more than float32 can explain"


def test_a_column_no_token_ever_uses_is_rounded() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 64)
    inputs[:, 7] = 0
    quantized = gptq(torch.randn(32, 64), inputs.T @ inputs)
    assert quantized.weight().isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_and_unpacking_are_each_others_inverse(bits: int) -> None:
    torch.manual_seed(0)
    matrix = round_to_nearest(torch.randn(24, 64), bits)
    again = unpacked(packed(matrix), matrix.scales)
    assert again.bits == bits and torch.equal(again.codes, matrix.codes)


def test_the_graphs_weights_are_the_gptq_weights_bit_for_bit(
    built: tuple[Path, dict, dict], matrices: dict[str, Quantized]
) -> None:
    graph = onnx.load(built[0] / "model.onnx").graph
    tensors = {
        one.name.removesuffix(".half"): np.asarray(numpy_helper.to_array(one), np.float32)
        if one.name.endswith(".half")
        else numpy_helper.to_array(one)
        for one in graph.initializer
    }
    nodes = {node.name: node for node in graph.node if node.op_type == "MatMulNBits"}
    layer = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    feed = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    expected = {
        "/model/layers.1/attn/qkv_proj/MatMul": layer,
        "/model/layers.0/mlp/gate_up_proj/MatMul": feed,
        "/model/layers.0/mlp/down_proj/MatMul": ["model.layers.0.mlp.down_proj"],
        "/lm_head/MatMul": ["lm_head"],
    }
    assert len(nodes) == 2 * 4 + 1
    for name, parts in expected.items():
        weight = torch.cat([matrices[part].weight() for part in parts])
        found = multiplied_by(nodes[name], tensors)
        assert np.array_equal(found, weight.numpy()), name
    down = matrices["model.layers.0.mlp.down_proj"]
    assert not torch.equal(round_to_nearest(down.weight()).scales, down.scales), "rounding anew would show"


def multiplied_by(node: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime multiplies by: the node's product with the unit matrix, (out, in)."""
    facts = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    alone = helper.make_node(
        "MatMulNBits",
        ["x", *node.input[1:3]],
        ["y"],
        domain="com.microsoft",
        **{**facts, "accuracy_level": 1},  # float32 inputs
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [alone],
        "alone",
        [value("x", onnx.TensorProto.FLOAT, [None, facts["K"]])],
        [value("y", onnx.TensorProto.FLOAT, [None, facts["N"]])],
        [numpy_helper.from_array(tensors[name], name) for name in node.input[1:3]],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (product,) = session.run(None, {"x": np.eye(facts["K"], dtype=np.float32)})
    return np.asarray(product).T


def test_the_layers_that_4_bits_hurt_most_keep_8(parent: Path, tmp_path: Path) -> None:
    metrics, made = {}, {}
    for share in (0.0, 0.3):
        (directory := tmp_path / f"made-{share}").mkdir()
        recipe = CompressRecipe(to="int4-onnx", weights="rtn", high_precision_fraction=share)
        made, metrics[share] = build_export(parent, directory, "generate", recipe)
    nodes = [node for node in onnx.load(directory / "model.onnx").graph.node if node.op_type == "MatMulNBits"]
    wide = {
        node.name.partition("/MatMul")[0].strip("/").replace("/", ".").replace(".attn.", ".self_attn.")
        for node in nodes
        if next(one.i for one in node.attribute if one.name == "bits") == 8
    }
    assert wide == {*made["export"]["wide"], "lm_head"} and 1 < len(wide) < len(nodes)
    assert metrics[0.3]["divergence"] < metrics[0.0]["divergence"]


def test_the_most_sensitive_fit_into_their_share() -> None:
    groups = stacked(["a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj", "b.gate_proj", "b.up_proj"])
    assert groups["a.qkv_proj"] == ["a.q_proj", "a.k_proj", "a.v_proj"] and len(groups) == 3
    sizes = {"a.qkv_proj": 300, "a.o_proj": 100, "b.gate_up_proj": 600}
    costs = {"a.qkv_proj": 0.6, "a.o_proj": 0.3, "b.gate_up_proj": 0.9}
    assert most_sensitive(costs, sizes, 0.1) == ["a.o_proj"]
    assert most_sensitive(costs, sizes, 0.4) == ["a.o_proj", "a.qkv_proj"]
    assert most_sensitive(costs, sizes, 1.0) == ["a.o_proj", "a.qkv_proj", "b.gate_up_proj"]
    assert most_sensitive(dict.fromkeys(sizes, 0.0), sizes, 1.0) == []
    at_most = sum(costs.values()) - costs["a.o_proj"]
    assert most_sensitive(costs, sizes, 1.0, enough=at_most) == ["a.o_proj"]
    assert most_sensitive(costs, sizes, 1.0, enough=sum(costs.values())) == []


def test_a_gptq_export_is_nearer_to_the_parent_than_rounding(
    built: tuple[Path, dict, dict], parent: Path, tmp_path: Path
) -> None:
    _, metrics = build_export(parent, tmp_path, "generate", CompressRecipe(to="int4-onnx", weights="rtn"))
    assert built[2]["divergence"] < metrics["divergence"]


def test_two_gptq_exports_are_the_same_bytes(
    built: tuple[Path, dict, dict], parent: Path, tmp_path: Path
) -> None:
    made, metrics = build_export(parent, tmp_path, "generate", RECIPE)
    assert (made, metrics) == built[1:]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {file.name for file in built[0].iterdir()} and "model.onnx.data" in names
    for name in names:
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes(), name


def test_the_bundle_says_what_was_seen_and_its_recipe_can_be_followed_again(
    tiny_settings: Settings, built: tuple[Path, dict, dict], tmp_path: Path
) -> None:
    import shutil

    registry = Registry(tiny_settings)
    shutil.copytree(built[0], tmp_path / "copy")
    write_export(tmp_path / "copy", registry.resolve("tiny@1"), *built[1:])
    version = registry.add(tmp_path / "copy", "again")
    assert recipe_of(version) == RECIPE
    assert version.manifest.recipe["export"]["calibration_seen"]["tokens"] == 4096


def test_layers_that_do_not_divide_into_blocks_are_told_as_such() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3
    )
    with pytest.raises(Unsupported, match=r"48 inputs.*rtn"):
        quantize_model(LlamaForCausalLM(config), torch.zeros(1, 8, dtype=torch.int64), {})
