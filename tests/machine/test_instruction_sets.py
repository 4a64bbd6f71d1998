"""One bundle, several CPUs: this one, and others that qemu emulates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from compress.sentence_encoder import inputs_of, load_encoder, probe_texts, truncating_tokenizer
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.machine.conftest import MACHINES, Answers, Case, run

KV_HEADS, HEAD = 2, 16


@pytest.fixture(scope="module")
def cases(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Decoders read 24 tokens and then one more; encoders three texts of different lengths."""
    rng = np.random.default_rng(0)
    made: list[Case] = []
    for name, folder in bundles.items():
        if name.startswith("encoder"):
            made.append(Case(name, folder / "model.onnx", texts(rng)))
        else:
            made.append(
                Case(name, folder / "model.onnx", tokens(rng, np.int8 if "kv" in name else np.float32))
            )
    made += saturating(bundles["encoder-fp32"] / "model.onnx", tmp_path_factory.mktemp("full"), texts(rng))
    return made


def texts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    ids = rng.integers(3, 512, (3, 40))
    mask = np.arange(40) < np.array([[40], [25], [5]])
    return {
        "0.input_ids": np.where(mask, ids, 0),
        "0.attention_mask": mask.astype(np.int64),
        "0.token_type_ids": np.zeros_like(ids),
    }


def tokens(rng: np.random.Generator, kept: type) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray] = {}
    for step, (count, total) in enumerate(((24, 24), (1, 25))):
        inputs[f"{step}.input_ids"] = rng.integers(3, 512, (1, count))
        inputs[f"{step}.attention_mask"] = np.ones((1, total), np.int64)
    for layer in range(2):
        for one in ("key", "value"):
            inputs[f"0.past_key_values.{layer}.{one}"] = np.zeros((1, KV_HEADS, 0, HEAD), kept)
    return inputs


def saturating(float32: Path, folder: Path, inputs: dict[str, np.ndarray]) -> list[Case]:
    """An encoder with full 8-bit weights, as others make it and everlearn once did, and what it is told."""
    graph = folder / "model.onnx"
    quantize_dynamic(str(float32), str(graph), per_channel=True, weight_type=QuantType.QInt8)
    model = onnx.load(graph)
    for (
        one
    ) in model.graph.initializer:  # weights that keep to the ends of their range, as smoothed ones tend to
        if one.name.endswith("_quantized") and one.data_type == onnx.TensorProto.INT8:
            codes = onnx.numpy_helper.to_array(one)
            one.CopyFrom(
                onnx.numpy_helper.from_array(np.where(codes < 0, -127, 127).astype(np.int8), one.name)
            )
    onnx.save(model, graph)
    return [Case("full-told", graph, inputs), Case("full-untold", graph, inputs, exact=False)]


@pytest.fixture(scope="module")
def here(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return run(cases, None, tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module", params=list(MACHINES))
def there(
    request: pytest.FixtureRequest, cases: list[Case], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Answers]:
    return request.param, run(cases, MACHINES[request.param], tmp_path_factory.mktemp("there"))


@pytest.mark.parametrize("bundle", ["int4", "int8", "int8-kv"])
def test_a_decoder_predicts_the_same(bundle: str, here: Answers, there: tuple[str, Answers]) -> None:
    """Where a CPU has no 8-bit products, activations are not rounded; on arm64 4 bits round them by token, not block."""
    machine, answers = there
    apart = divergence(here.rows[bundle], answers.rows[bundle])
    assert apart < (1e-5 if machine == "AVX2 without VNNI" else 1e-3), apart


@pytest.mark.parametrize("bundle", ["encoder-int8", "encoder-fp32", "full-told"])
def test_an_encoder_gives_the_same_embedding(bundle: str, here: Answers, there: tuple[str, Answers]) -> None:
    assert nearness(here.rows[bundle], there[1].rows[bundle]) > 0.99999


def test_full_8_bits_are_wrong_without_vnni_where_onnxruntime_is_told_nothing(
    here: Answers, there: tuple[str, Answers]
) -> None:
    machine, answers = there
    wrong = nearness(here.rows["full-told"], answers.rows["full-untold"]) < 0.9
    assert wrong == (machine == "AVX2 without VNNI")


def test_everlearn_names_its_instructions(there: tuple[str, Answers]) -> None:
    machine, answers = there
    assert tuple(answers.said["names"]) == MACHINES[machine].names
    slow = ("no 8-bit products", "three instructions")
    assert any(one in answers.said["meaning"] for one in slow) == (
        machine in ("SSE4.2", "AVX2 without VNNI", "arm64")
    )


@pytest.mark.slow
def test_minilm_is_as_near_to_its_parent_without_vnni(real_settings: Settings, tmp_path: Path) -> None:
    registry = Registry(real_settings)
    parent = registry.path(registry.weights("minilm"))
    graph = registry.path(registry.resolve("minilm@champion")) / "model.onnx"
    inputs = inputs_of(truncating_tokenizer(parent), probe_texts()[:2])
    answers = run(
        [Case("minilm", graph, {f"0.{name}": value for name, value in inputs.items()})],
        MACHINES["AVX2 without VNNI"],
        tmp_path,
    )
    assert nearness(answers.rows["minilm"], load_encoder(parent).embed(inputs)) > 0.98


def divergence(expected: np.ndarray, logits: np.ndarray) -> float:
    """The largest Kullback-Leibler divergence of a row's predictions, in nats; (rows, vocab) both."""
    (p, q) = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (expected, logits))
    return float((np.exp(p) * (p - q)).sum(-1).max())


def nearness(expected: np.ndarray, embeddings: np.ndarray) -> float:
    """The least cosine; unit rows, (rows, dim) both."""
    return float((expected * embeddings).sum(-1).min())
