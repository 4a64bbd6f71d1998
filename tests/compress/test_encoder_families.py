"""Encoders of every family that is offered: the graph has torch's embeddings, at any length, beside any padding."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    SqueezeBertConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

from compress.measure.parity import Drifted
from compress.sentence_encoder import load_encoder
from compress.targets import onnx_encoder
from compress.targets.architectures import ONNX_ENCODERS
from compress.targets.onnx_encoder import refuse_another_graph, session_embed, trace
from serve.engines.onnx.encoders.model import EncoderModel
from tests.compress.targets.architecture_table import PAGE
from tests.support.tiny_models import write_bert

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 130,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
BEHIND = SHAPE | {"pad_token_id": 1}
RELATIVE = SHAPE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DISTILBERT = {"vocab_size": 512, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
MODERN = {"local_attention": 32, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "albert": AlbertConfig(**SHAPE, embedding_size=32),
    "bert": BertConfig(**SHAPE),
    "camembert": CamembertConfig(**BEHIND),
    "convbert": ConvBertConfig(**SHAPE, embedding_size=64),
    "deberta": DebertaConfig(**RELATIVE),
    "deberta-v2": DebertaV2Config(**RELATIVE),
    "deberta-v2, buckets": DebertaV2Config(**RELATIVE, position_buckets=16, share_att_key=True),
    "distilbert": DistilBertConfig(**DISTILBERT, max_position_embeddings=130, initializer_range=0.15),
    "electra": ElectraConfig(**SHAPE, embedding_size=32),
    "modernbert": ModernBertConfig(**SHAPE | {"num_hidden_layers": 4}, **MODERN),
    "mpnet": MPNetConfig(**BEHIND),
    "nomic_bert": NomicBertConfig(**SHAPE),
    "roberta": RobertaConfig(**BEHIND),
    "squeezebert": SqueezeBertConfig(**SHAPE, embedding_size=64),
    "xlm-roberta": XLMRobertaConfig(**BEHIND),
    "xlm-roberta-xl": XLMRobertaXLConfig(**BEHIND),
}


def write(config: PreTrainedConfig, directory: Path) -> None:
    """A sentence-transformers directory of random weights."""
    write_bert(directory)
    (directory / "model.safetensors").unlink()
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_has_torchs_embeddings_at_any_length(family: str, tmp_path: Path) -> None:
    write(FAMILIES[family], tmp_path)
    encoder = load_encoder(tmp_path)
    trace(load_encoder(tmp_path), tmp_path / "model.onnx")
    refuse_another_graph(tmp_path / "model.onnx", tmp_path)
    embed = session_embed(tmp_path / "model.onnx")
    for length in (3, 60, 120):
        ids = np.random.default_rng(length).integers(5, 500, (3, length))
        mask = np.ones_like(ids)
        mask[1, length // 2 :] = 0
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        assert (embed(feeds) * encoder.embed(feeds)).sum(-1).min() > 0.99999


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_the_engine_reads_as_many_tokens_as_there_are_positions(family: str, tmp_path: Path) -> None:
    """Two of these models' positions are the padding's and those before it."""
    write(FAMILIES[family], tmp_path)
    trace(load_encoder(tmp_path), tmp_path / "model.onnx")
    context = EncoderModel(tmp_path, outputs=["sentence_embedding"], threads=1, queue_limit=1).context
    assert context == 128
    embed = session_embed(tmp_path / "model.onnx")
    for length, fits in ((context, True), (context + 1, False)):
        ids = np.full((1, length), 7)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        with nullcontext() if fits else pytest.raises(Exception, match="indices element out of data bounds"):
            assert np.isfinite(embed(feeds)).all()


def test_every_family_that_is_offered_is_here_and_on_the_page() -> None:
    assert {name.partition(",")[0] for name in FAMILIES} == ONNX_ENCODERS
    assert ", ".join(f"`{name}`" for name in sorted(ONNX_ENCODERS)) in PAGE.read_text()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_of_another_encoder_is_refused_before_it_is_rounded(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, config in (("one", FAMILIES["bert"]), ("other", BertConfig(**SHAPE, hidden_act="relu"))):
        (tmp_path / name).mkdir()
        write(config, tmp_path / name)
    request = {
        "model_dir": str(tmp_path / "one"),
        "directory": str(tmp_path),
        "task": "embed",
        "precision": precision,
        "calibration": {"tokens": 1024},
    }
    other = load_encoder(tmp_path / "other")
    monkeypatch.setattr(onnx_encoder, "trace", lambda _, graph: trace(other, graph))
    monkeypatch.setattr(onnx_encoder, "quantize", lambda *_: pytest.fail("it was rounded"))
    with pytest.raises(Drifted, match="graph in float32 has cosine"):
        onnx_encoder.build_onnx_encoder(request, lambda *_: None)
