"""Exports of real (tiny, and once a full) models: what is in the bundle, and that it is still the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from compress import export
from compress.export import build_export, export_onnx
from compress.measure.parent_divergence import held_windows
from compress.measure.parity import Drifted, refuse_drift
from compress.quantize.calibration import calibration_windows
from compress.recipe import Calibration, CompressRecipe
from everlearn.bundles.bundle import open_bundle
from everlearn.errors import NotFound, Unsupported
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from tests.support.tiny_models import train_tokenizer
from train.evaluate.held_out_text import HELD_OUT_TOKENS, WINDOW, held_out_text


@pytest.fixture(scope="session")
def int4(tiny_settings: Settings) -> Version:
    return export_onnx(tiny_settings, "tiny", "int4-onnx")


@pytest.fixture(scope="session")
def fp32(tiny_settings: Settings) -> Version:
    return export_onnx(tiny_settings, "tiny@1", "fp32-onnx")


def test_an_export_is_a_child_of_its_parent_and_says_how_it_was_made(
    tiny_settings: Settings, int4: Version
) -> None:
    parent = Registry(tiny_settings).resolve("tiny@1")
    manifest = int4.manifest
    assert (int4.model, int4.format, int4.parent_digest) == ("tiny", "onnx-genai", parent.digest)
    assert manifest.parameters == parent.manifest.parameters
    assert manifest.recipe["export"]["to"] == "int4-onnx"
    assert "block_size=32" in manifest.recipe["export"]["options"]
    assert manifest.recipe["export"]["builder"].startswith("onnxruntime-genai ")
    assert manifest.metrics["held_text"]["sha256"] == held_out_text().sha256
    assert manifest.metrics["tokens"] == HELD_OUT_TOKENS - HELD_OUT_TOKENS // WINDOW


def test_the_fp32_graph_has_its_parents_perplexity(fp32: Version) -> None:
    metrics = fp32.manifest.metrics
    assert metrics["perplexity"] == pytest.approx(metrics["parent_perplexity"], rel=1e-4)
    assert metrics["divergence"] < 1e-5
    assert metrics["agreement"] > 0.999


def test_int4_is_smaller_and_near(fp32: Version, int4: Version) -> None:
    assert int4.manifest.size_bytes < fp32.manifest.size_bytes
    assert 0 < int4.manifest.metrics["divergence"] < 0.5


def test_embeddings_and_output_layer_share_one_int4_matrix(tiny_settings: Settings, int4: Version) -> None:
    graph = onnx.load(Registry(tiny_settings).path(int4) / "model.onnx", load_external_data=False).graph
    (gather,) = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    head = next(node for node in graph.node if node.name.startswith("/lm_head/MatMul"))
    reshaped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    assert reshaped.get(gather.input[0], gather.input[0]) == head.input[1]
    largest = max(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    assert largest < 512 * 64, "a matrix stayed in float32"


def test_int8_shares_them_too_and_stays_nearer_than_int4(tiny_settings: Settings, int4: Version) -> None:
    int8 = export_onnx(tiny_settings, "tiny@1", "int8-onnx")
    graph = onnx.load(Registry(tiny_settings).path(int8) / "model.onnx", load_external_data=False).graph
    (lookup,) = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    (head,) = [node for node in graph.node if "logits" in node.output]
    (rows,) = [node for node in graph.node if lookup.input[0] in node.output]
    assert rows.input[0] == head.input[1]
    assert lookup.input[2] == head.input[2]
    assert 0 < int8.manifest.metrics["divergence"] < int4.manifest.metrics["divergence"]


def test_generation_ends_at_the_parents_end_token_alone(tiny_settings: Settings, int4: Version) -> None:
    directory = Registry(tiny_settings).path(int4)
    model = json.loads((directory / "genai_config.json").read_text())["model"]
    assert model["eos_token_id"] in (2, [2])
    assert (model["bos_token_id"], model["pad_token_id"]) == (1, 2)


def test_the_tokenizer_and_template_are_the_parents_bytes(tiny_settings: Settings, int4: Version) -> None:
    registry = Registry(tiny_settings)
    parent, child = registry.path(registry.resolve("tiny@1")), registry.path(int4)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (parent / name).read_bytes() == (child / name).read_bytes()


def test_onnxruntime_genai_reads_the_directory(tiny_settings: Settings, int4: Version) -> None:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(Registry(tiny_settings).path(int4)))
    tokens = onnxruntime_genai.Tokenizer(model).encode("A network packet 42").tolist()
    assert tokens == train_tokenizer().encode("A network packet 42").ids
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens) + 4)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    generator.generate_next_token()
    assert 0 <= generator.get_next_tokens()[0] < 512


def test_an_exported_directory_can_be_imported_elsewhere(
    tiny_settings: Settings, int4: Version, settings: Settings, tmp_path: Path
) -> None:
    source = Registry(tiny_settings).path(int4)
    copy = tmp_path / "genai"
    copy.mkdir()
    for file in source.iterdir():
        if file.name != "bundle.json":
            (copy / file.name).write_bytes(file.read_bytes())
    version = import_model(settings, str(copy), name="phone")
    assert (version.format, version.task) == ("onnx-genai", "generate")
    assert open_bundle(Registry(settings).path(version)).manifest.architecture == "llama"


def test_a_bundle_keeps_its_parent_when_it_is_brought_to_another_home(
    tiny_settings: Settings, int4: Version, settings: Settings
) -> None:
    version = import_model(settings, str(Registry(tiny_settings).path(int4)), name="moved")
    assert version.digest == int4.digest


def test_an_export_that_drifts_is_not_registered(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(export.TARGETS["int4-onnx"], max_divergence=1e-6)
    monkeypatch.setattr(export, "TARGETS", {"int4-onnx": strict})
    before = len(Registry(tiny_settings).versions("tiny"))
    with pytest.raises(Drifted, match="nats per token away"):
        export_onnx(tiny_settings, "tiny", "int4-onnx")
    assert len(Registry(tiny_settings).versions("tiny")) == before


@pytest.mark.parametrize("divergence", [float("nan"), float("inf"), 1.01])
def test_the_gate_refuses_what_is_not_a_small_number(divergence: float) -> None:
    with pytest.raises(Drifted):
        refuse_drift(divergence, export.TARGETS["int4-onnx"])


def test_a_model_that_reads_fewer_tokens_at_once_is_calibrated_and_measured_on_shorter_rows(
    parent: Path, tmp_path: Path
) -> None:
    short = shutil.copytree(parent, tmp_path / "short")
    config = json.loads((parent / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}))
    recipe = CompressRecipe(to="int4-onnx", weights="gptq", calibration=Calibration(tokens=1024))
    windows = calibration_windows(recipe.calibration, short / "tokenizer.json")
    assert windows.shape[1] == 96 and windows.size > 900
    measured = held_windows(short, HELD_OUT_TOKENS)
    assert measured.shape[1] == 96
    assert not {tuple(row) for row in windows} & {tuple(row) for row in measured}
    (made := tmp_path / "made").mkdir()
    _, metrics = build_export(short, made, "generate", recipe)
    assert 0 < metrics["divergence"] < 0.2 and metrics["tokens"] > 3000


def test_only_safetensors_versions_are_exported(tiny_settings: Settings, int4: Version) -> None:
    with pytest.raises(Unsupported, match="its float weights are"):
        export_onnx(tiny_settings, int4.ref, "int8-onnx")
    with pytest.raises(NotFound):
        export_onnx(tiny_settings, "nothing", "int8-onnx")


def test_an_architecture_the_builder_does_not_know_is_told_as_such(
    settings: Settings, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    train_tokenizer().save(str(tmp_path / "gpt2" / "tokenizer.json"))
    import_model(settings, str(tmp_path / "gpt2"), name="old")
    with pytest.raises(Unsupported, match="builder"):
        export_onnx(settings, "old", "fp32-onnx")


@pytest.mark.parametrize("to", ["fp32-onnx", "int8-onnx"])
def test_an_encoder_gives_unit_vectors_that_do_not_depend_on_the_batch(
    tiny_settings: Settings, to: str
) -> None:
    version = export_onnx(tiny_settings, "encoder", to)
    directory = Registry(tiny_settings).path(version)
    assert (version.format, version.task) == ("onnx", "embed")
    assert version.manifest.metrics["cosine_min"] > (0.9999 if to == "fp32-onnx" else 0.97)
    assert json.loads((directory / "config.json").read_text())["max_length"] == 64
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.padding is None and tokenizer.truncation is None
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"))
    assert [output.shape for output in session.get_outputs()] == [["batch", 64]]
    alone = embed(session, tokenizer, ["a short one"])
    among = embed(session, tokenizer, ["a short one", held_out_text().text[:150]])
    assert np.linalg.norm(among, axis=-1) == pytest.approx([1, 1], abs=1e-5)
    assert float((alone[0] * among[0]).sum()) > (0.99999 if to == "fp32-onnx" else 0.98)


def embed(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    feeds = {
        "input_ids": np.array([item.ids for item in encoded]),
        "attention_mask": np.array([item.attention_mask for item in encoded]),
        "token_type_ids": np.array([item.type_ids for item in encoded]),
    }
    return np.asarray(session.run(["sentence_embedding"], feeds)[0])


def test_an_encoder_is_not_offered_in_int4(tiny_settings: Settings) -> None:
    with pytest.raises(Unsupported, match="int8-onnx or fp32-onnx"):
        export_onnx(tiny_settings, "encoder", "int4-onnx")


@pytest.mark.slow
def test_smollm2_in_int4_fits_92_mb_and_is_measured_beside_its_parent(real_settings: Settings) -> None:
    version = Registry(real_settings).resolve("smollm2@champion")
    directory = Registry(real_settings).path(version)
    metrics = version.manifest.metrics
    assert sum(file.stat().st_size for file in directory.iterdir()) <= 92_000_000
    assert json.loads((directory / "genai_config.json").read_text())["model"]["eos_token_id"] in (2, [2])
    assert 1.0 < metrics["perplexity_ratio"] < 1.6
    assert metrics["agreement"] > 0.6


@pytest.mark.slow
def test_minilm_in_int8_stays_near_its_parent(real_settings: Settings) -> None:
    version = Registry(real_settings).resolve("minilm@champion")
    assert version.manifest.metrics["cosine_min"] > 0.97
    assert version.manifest.metrics["dimensions"] == 384
