"""The gate that every target passes: the same weights, and so the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig, LlamaConfig

from compress import export
from compress.export import export_onnx
from compress.measure.parent_divergence import held_windows
from compress.measure.parity import SAME_GRAPH, Drifted, carried_logits, mean_divergence, refuse_another
from compress.targets import attention_graph
from compress.targets.vllm import dense_weights
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.compress.targets.architecture_table import build_and_measure
from tests.support.architecture_rows import SHAPE, rope, write
from train.evaluate.held_out_text import tokens_at_once
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm


@pytest.mark.parametrize("divergence", [float("nan"), float("inf"), 0.0011])
def test_the_parity_gate_refuses_a_divergence_that_is_not_a_small_number(divergence: float) -> None:
    with pytest.raises(Drifted, match="nats per token away from torch"):
        refuse_another(divergence, SAME_GRAPH, "the graph")
    refuse_another(0.0009, SAME_GRAPH, "the graph")


def test_another_model_with_the_same_weights_is_seen(parent: Path, tmp_path: Path) -> None:
    other = shutil.copytree(parent, tmp_path / "other")
    config = json.loads((parent / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (other / "config.json").write_text(json.dumps(config))
    windows = held_windows(parent, 512)
    weights = load_causal_lm(parent).state_dict()
    theirs = load_causal_lm(other)
    assert (
        mean_divergence(carried_logits(parent, weights, windows), torch_logits(theirs, windows), windows)
        > SAME_GRAPH
    )
    assert (
        mean_divergence(carried_logits(other, weights, windows), torch_logits(theirs, windows), windows)
        < 1e-6
    )


def test_a_tensor_that_is_not_there_is_named(parent: Path) -> None:
    weights = load_causal_lm(parent).state_dict()
    weights.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(Drifted, match=r"layers\.1\.mlp\.up_proj"):
        carried_logits(parent, weights, held_windows(parent, 512))


@pytest.mark.parametrize("to", ["fp32-onnx", "int4-onnx"])
def test_a_graph_that_drops_scaled_positions_is_seen_under_the_loss_of_rounding(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-genai's builder makes it of Llama with YaRN."""
    write(LlamaConfig(**SHAPE, rope_parameters=rope("yarn")), tmp_path / "model")
    assert build_and_measure(tmp_path / "model", tmp_path / "right", to)["graph"] < SAME_GRAPH
    monkeypatch.setattr(attention_graph, "write_attention", lambda *_: None)
    assert build_and_measure(tmp_path / "model", tmp_path / "wrong", to)["graph"] > 1000 * SAME_GRAPH


def test_a_graph_is_not_registered_where_it_is_another_model(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(Registry(tiny_settings).versions("tiny"))
    for limit, said in (
        ("SAME_GRAPH", "LlamaForCausalLM: the int8 graph in float32 is"),
        ("KERNELS", "LlamaForCausalLM: the int8 graph as it is served is"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(export, limit, -1.0)
            with pytest.raises(Drifted, match=said):
                export_onnx(tiny_settings, "tiny@1", "int8-onnx")
    assert not list((tiny_settings.home / "runs").glob("quantize-*")), "rounded matrices were left behind"
    assert len(Registry(tiny_settings).versions("tiny")) == before


def test_scaled_positions_make_another_graph_of_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    found: list[tuple[str, float]] = []
    for kind in ("default", "yarn"):
        write(LlamaConfig(**SHAPE, rope_parameters=rope(kind)), tmp_path / kind)
        import_model(settings, str(tmp_path / kind), name=kind)
        version = export_onnx(settings, kind, "int8-onnx")
        graph = Registry(settings).path(version) / "model.onnx"
        found.append((graph.read_bytes().hex(), version.manifest.metrics["same_weights"]["graph"]))
    assert found[0][0] != found[1][0]
    assert max(figure for _, figure in found) < SAME_GRAPH


def test_an_architecture_that_is_not_built_is_refused_before_anything_is_read(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn.errors import Unsupported

    write(LlamaConfig(**SHAPE | {"head_dim": 24}), tmp_path / "model")
    import_model(settings, str(tmp_path / "model"), name="narrow")
    monkeypatch.setattr(export, "run_child", lambda *_: pytest.fail("work began"))
    with pytest.raises(
        Unsupported, match=r"LlamaForCausalLM cannot be made into int4-onnx: its heads are 24"
    ):
        export_onnx(settings, "narrow", "int4-onnx")


def test_gpt_neox_is_held_to_torch_though_its_output_layer_is_stored_by_another_name(
    parent: Path, tmp_path: Path
) -> None:
    config = GPTNeoXConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    write(config, tmp_path / "model")
    weights = dense_weights(tmp_path / "model")
    windows = held_windows(parent, 512)
    theirs = torch_logits(load_causal_lm(tmp_path / "model"), windows)
    assert mean_divergence(carried_logits(tmp_path / "model", weights, windows), theirs, windows) < 1e-6


def test_phi3s_yarn_which_transformers_calls_longrope_is_read_as_longrope() -> None:
    config = {
        "max_position_embeddings": 1024, "original_max_position_embeddings": 256,
        "rope_scaling": {"type": "yarn", "short_factor": [1.0], "long_factor": [2.0]},
    }  # fmt: skip
    assert tokens_at_once({"model_type": "phi3", **config}) == 256
    assert tokens_at_once({"model_type": "llama", **config}) == 1024
