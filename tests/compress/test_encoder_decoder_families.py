"""Encoder-decoders of every family that is offered: both graphs have torch's logits, token by token, beside any padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    PreTrainedConfig,
    T5Config,
    UMT5Config,
)

from compress.measure.parity import Drifted
from compress.targets import onnx_encoder_decoder
from compress.targets.architectures import ONNX_ENCODER_DECODERS, refuse_architecture
from compress.targets.onnx_encoder_decoder import build_onnx_encoder_decoder, trace
from everlearn.errors import Unsupported
from serve.engines.onnx.seq2seq.model import EncoderDecoder
from tests.compress.targets.architecture_table import PAGE
from tests.support.tiny_models import write_encoder_tokenizer, write_t5

MARKS: dict[str, Any] = {"vocab_size": 512, "d_model": 64, "pad_token_id": 0, "eos_token_id": 2}
T5: dict[str, Any] = MARKS | {
    "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0
}  # fmt: skip
BART: dict[str, Any] = MARKS | {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 128, "bos_token_id": 1,
    "decoder_start_token_id": 2, "init_std": 0.1,
}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "bart": BartConfig(**BART),
    "m2m_100": M2M100Config(**BART),
    "marian": MarianConfig(**BART),
    "mbart": MBartConfig(**BART),
    "mt5": MT5Config(**T5),
    "pegasus": PegasusConfig(**BART),
    "t5": T5Config(**T5),
    "t5, gated and untied": T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": UMT5Config(**T5),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_have_torchs_logits_token_by_token(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(FAMILIES[family]).save_pretrained(tmp_path)
    write_encoder_tokenizer(tmp_path)
    (tmp_path / "made").mkdir()
    request = {"model_dir": str(tmp_path), "directory": str(tmp_path / "made"), "precision": "fp32"}
    metrics = build_onnx_encoder_decoder(request, lambda *_: None)["metrics"]
    assert metrics["logits_difference"] < 1e-4 and metrics["prediction_agreement"] == 1
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(0)
    sources = [rng.integers(5, 500, length) for length in (9, 4, 60)]
    answers = rng.integers(5, 500, (3, 40))
    served = EncoderDecoder(tmp_path / "made", threads=1)
    assert served.first == [FAMILIES[family].decoder_start_token_id]
    state, logits = served.read(sources)
    ours = [logits, *(served.step(state, tokens) for tokens in answers.T)]
    for row, source in enumerate(sources):
        given = torch.tensor([[*served.first, *answers[row]]])
        with torch.inference_mode():
            theirs = model(input_ids=torch.tensor(source)[None], decoder_input_ids=given).logits[0].numpy()
        assert np.stack(ours)[:, row] == pytest.approx(theirs, abs=1e-3)


def test_every_family_that_is_offered_is_here_and_on_the_page_and_no_other_is_begun() -> None:
    assert {name.partition(",")[0] for name in FAMILIES} == ONNX_ENCODER_DECODERS
    assert ", ".join(f"`{name}`" for name in sorted(ONNX_ENCODER_DECODERS)) in PAGE.read_text()
    config = {"architectures": ["LongT5ForConditionalGeneration"], "model_type": "longt5"}
    with pytest.raises(Unsupported, match="longt5"):
        refuse_architecture(config, "text2text", "int8-onnx")
    with pytest.raises(Unsupported, match="int8-onnx or fp32-onnx"):
        refuse_architecture(config | {"model_type": "t5"}, "text2text", "int4-onnx")


def test_graphs_of_another_model_are_refused_before_they_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's answers scaled, as transformers 4 reads this file."""
    model = write_t5(tmp_path)
    model.config.scale_decoder_outputs = True
    monkeypatch.setattr(onnx_encoder_decoder, "trace", lambda _, directory: trace(model, directory))
    monkeypatch.setattr(onnx_encoder_decoder, "quantize", lambda *_: pytest.fail("it was rounded"))
    (tmp_path / "made").mkdir()
    request = {"model_dir": str(tmp_path), "directory": str(tmp_path / "made"), "precision": "int8"}
    with pytest.raises(Drifted, match="graphs in float32"):
        build_onnx_encoder_decoder(request, lambda *_: None)
