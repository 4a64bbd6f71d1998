"""An encoder's large values: divided out where they keep to channels, token by token where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import MPNetConfig, MPNetModel

from compress.export import export
from compress.quantize.calibration import calibration_windows
from compress.quantize.smooth_encoder import reads, smooth
from compress.recipe import Calibration, CompressRecipe
from compress.sentence_encoder import (
    Encoder,
    drop_pooler,
    embedding_similarity,
    load_encoder,
    texts_of,
    whole_texts,
)
from compress.targets.onnx_encoder import batches_of, quantize, session_embed, trace
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import train_tokenizer, write_bert

SELF = [f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")]
COMES_AND_GOES = "encoder.layer.1.output.dense"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel that layer 0 reads is forty times as large as the others; what a part of layer 1 reads is large or
    next to nothing, as the token wills."""
    directory = tmp_path_factory.mktemp("bert")
    model = write_bert(directory)
    with torch.no_grad():
        model.embeddings.LayerNorm.weight[3] *= 40
        feed_forward = model.encoder.layer[1].intermediate.dense.weight  # (96, 64)
        direction = nn.functional.normalize(torch.randn(64), dim=0)
        feed_forward += 8 * direction
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def texts(model_dir: Path) -> list[torch.Tensor]:
    return texts_of(calibration_windows(Calibration(), model_dir / "tokenizer.json").reshape(-1), model_dir)


def test_each_layer_gets_what_it_needs_and_the_encoder_computes_what_it_did(
    model_dir: Path, texts: list[torch.Tensor]
) -> None:
    encoder = load_encoder(model_dir)
    drop_pooler(encoder)
    before = encoder.embed(whole_texts(texts[-1]))
    smoothed, by_token = smooth(encoder, batches_of(encoder, texts))
    assert smoothed.keys() >= set(SELF) and len({smoothed[name] for name in SELF}) == 1
    assert by_token == [COMES_AND_GOES]
    np.testing.assert_allclose(encoder.embed(whole_texts(texts[-1])), before, atol=1e-5)


def test_layers_that_read_one_tensor_are_known_as_such(model_dir: Path, texts: list[torch.Tensor]) -> None:
    encoder = load_encoder(model_dir)
    first = reads(encoder, batches_of(encoder, texts))[0]
    assert first.layers == SELF
    states = encoder.body.embeddings(torch.cat([some[:, :16] for some in texts]))
    assert first.low.shape == (64,) and float(first.high[3]) > 10 * float(states[..., 4].abs().max())


def test_the_graph_is_made_so_and_is_nearer_than_one_scale_for_all(
    model_dir: Path, tmp_path: Path, texts: list[torch.Tensor]
) -> None:
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(model_dir), name="encoder")
    version = export(settings, "encoder", CompressRecipe(to="int8-onnx"))
    made = version.manifest.recipe["export"]
    assert made["by_token"] == [COMES_AND_GOES] and made["calibration_seen"]["tokens"] == 8192
    model = onnx.load(Registry(settings).path(version) / "model.onnx")
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 12 and "MatMulNBits" not in {node.op_type for node in model.graph.node}
    assert len({node.input[0] for node in products}) == 12 - 4, "query, key and value read one rounded tensor"

    whole = load_encoder(model_dir)
    graph = tmp_path / "plain.onnx"
    trace(whole, graph)
    quantize(graph)
    plain = embedding_similarity(session_embed(graph), whole.embed, model_dir)
    ours = version.manifest.metrics["cosine_mean"]
    assert 1 - ours < (1 - plain["cosine_mean"]) / 2


def test_no_two_products_of_8_bits_overflow_16_bits_and_embeddings_keep_all_of_theirs(
    model_dir: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "model.onnx"
    trace(load_encoder(model_dir), graph)
    quantize(graph)
    model = onnx.load(graph)
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    codes = [held[node.input[1]] for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert {one.dtype for one in codes} == {np.dtype(np.int8)}
    assert {int(np.abs(one.astype(int)).max()) for one in codes} == {64}
    (words,) = (one for one in held.values() if one.shape == (512, 64))
    assert words.itemsize == 1 and np.ptp(words.astype(int)) > 250


class Twice(nn.Module):
    """A layer that is called twice and one that is called once."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(512, 16)
        self.shared, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        states = self.last(self.shared(self.shared(self.words(input_ids))))
        return type("Output", (), {"last_hidden_state": states})


def test_a_layer_that_reads_several_tensors_is_left_as_it_is(texts: list[torch.Tensor]) -> None:
    encoder = Encoder(Twice(), "mean").eval()
    assert [one.layers for one in reads(encoder, batches_of(encoder, texts))] == [["last"]]


def test_positions_behind_the_padding_s_are_fewer(tmp_path: Path) -> None:
    directory = tmp_path / "mpnet"
    config = MPNetConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    MPNetModel(config).save_pretrained(directory)
    train_tokenizer().save(str(directory / "tokenizer.json"))
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(directory), name="positions")
    version = export(settings, "positions", CompressRecipe(to="int8-onnx"))
    assert version.manifest.recipe["export"]["max_length"] == 64
