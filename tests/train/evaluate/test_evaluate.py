"""Perplexity against its definition, and against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertConfig, Gemma2Config, PreTrainedConfig

from compress.sentence_encoder import load_encoder
from everlearn.errors import InvalidInput
from tests.compress.test_encoder_families import FAMILIES as ENCODERS
from tests.support.tiny_models import train_tokenizer, write_bert, write_llama
from train.evaluate.comparison import compare
from train.evaluate.held_out_text import held_out_text, token_windows
from train.evaluate.logits import torch_logits
from train.evaluate.perplexity import log_softmax, negative_log_likelihood, perplexity, score
from train.models.load import load_causal_lm

WINDOWS = np.arange(12, dtype=np.int64).reshape(3, 4)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    measured = score((np.zeros((4, 50), dtype=np.float32) for _ in WINDOWS), WINDOWS)
    assert measured.perplexity == pytest.approx(50)
    assert measured.tokens == 9


def test_a_model_that_is_sure_and_right_has_perplexity_one() -> None:
    def certain():
        for ids in WINDOWS:
            logits = np.full((4, 50), -100, dtype=np.float32)
            logits[np.arange(3), ids[1:]] = 100
            yield logits

    assert score(certain(), WINDOWS).perplexity == pytest.approx(1)


def test_a_model_that_is_sure_and_wrong_costs_its_true_value_and_no_overflow() -> None:
    logits = np.full((1, 10), -1000, dtype=np.float32)
    logits[0, 0] = 1000
    assert negative_log_likelihood(log_softmax(logits), np.array([5])) == pytest.approx(2000)


@given(st.integers(1, 5), st.integers(2, 300), st.floats(0.01, 60), st.integers(0, 2**32 - 1))
def test_log_softmax_is_torchs(rows: int, vocabulary: int, scale: float, seed: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * scale).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, atol=2e-5, rtol=2e-5)


def test_the_score_is_torchs_cross_entropy(tmp_path) -> None:
    model = write_llama(tmp_path)
    windows = token_windows(tmp_path / "tokenizer.json", held_out_text().text, limit=256, window=64)
    ids = torch.from_numpy(windows)
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    measured = perplexity(tmp_path, "safetensors", windows)
    assert (measured.nll, measured.tokens) == (pytest.approx(loss, abs=1e-5), 4 * 63)


def test_a_model_beside_itself_does_not_diverge(tmp_path) -> None:
    model = write_llama(tmp_path)
    windows = token_windows(tmp_path / "tokenizer.json", held_out_text().text, limit=128, window=64)
    same = compare(torch_logits(model, windows), torch_logits(model, windows), windows)
    assert (same.divergence, same.agreement) == (0, 1)
    assert same.perplexity == same.reference_perplexity
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(2)
    changed = compare(torch_logits(write_llama(tmp_path), windows), torch_logits(model, windows), windows)
    assert changed.divergence > 0.01
    assert changed.reference_perplexity == same.perplexity != changed.perplexity


def test_windows_are_the_texts_own_tokens_in_order(tmp_path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    windows = token_windows(tmp_path / "tokenizer.json", held_out_text().text, limit=1000, window=128)
    assert windows.shape == (7, 128)
    assert windows.reshape(-1).tolist() == tokenizer.encode(held_out_text().text).ids[: 7 * 128]


def test_a_text_shorter_than_a_window_is_refused(tmp_path) -> None:
    train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InvalidInput, match="needs at least"):
        token_windows(tmp_path / "tokenizer.json", "too short")


def test_the_held_text_is_prose_of_the_promised_size() -> None:
    text = held_out_text().text
    assert 30_000 < len(text.encode()) < 60_000
    assert "\r" not in text and "\t" not in text


def test_attention_scores_are_capped_where_the_configuration_says_so(tmp_path) -> None:
    """torch's fused attention leaves the cap out: what was measured and trained was another model."""
    from transformers import AutoModelForCausalLM

    from tests.support.architecture_rows import SHAPE, write

    shape = SHAPE | {"query_pre_attn_scalar": 16}
    write(Gemma2Config(**shape, attn_logit_softcapping=2.0), tmp_path / "capped")
    write(Gemma2Config(**shape, attn_logit_softcapping=None), tmp_path / "free")
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        capped = load_causal_lm(tmp_path / "capped")(ids).logits
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "capped", attn_implementation="eager")
        assert torch.equal(capped, expected.eval()(ids).logits)
        free = load_causal_lm(tmp_path / "free")
        assert (capped - free(ids).logits).abs().max() > 1
        assert free.config._attn_implementation == "sdpa"


def test_documents_in_one_row_stay_apart_where_attention_is_spelt_out(tmp_path) -> None:
    from tests.support.architecture_rows import SHAPE, write

    write(Gemma2Config(**SHAPE, query_pre_attn_scalar=16, sliding_window=16), tmp_path)
    model = load_causal_lm(tmp_path)
    first, second = torch.arange(3, 43), torch.arange(100, 130)
    positions = torch.cat([torch.arange(40), torch.arange(30)])[None]
    with torch.no_grad():
        both = model(torch.cat([first, second])[None], position_ids=positions, use_cache=False).logits[0, 40:]
        alone = model(second[None], use_cache=False).logits[0]
    assert (both - alone).abs().max() < 1e-4


Tensors = dict[str, torch.Tensor]
MISSING, SURPLUS = "is missing from the weights", "which the model of config.json has not"
OTHER: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no embedding": (
        lambda t: t.pop("model.embed_tokens.weight"),
        rf"model.embed_tokens.weight .*{MISSING}|lm_head.weight .*{MISSING}",
    ),
    "no norm": (lambda t: t.pop("model.norm.weight"), f"tensor model.norm.weight {MISSING}"),
    "a norm of another length": (
        lambda t: t.update({"model.norm.weight": torch.ones(32)}),
        r"model.norm.weight has the shape \[32\]; by config.json it is \[64\]",
    ),
    "biases that the model has not": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        f"a tensor model.layers.0.self_attn.q_proj.bias, {SURPLUS}",
    ),
    "a layer more": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(96, 64)}),
        f"a tensor model.layers.2.mlp.up_proj.weight, {SURPLUS}",
    ),
}


def change_weights(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("what", OTHER)
def test_weights_that_are_not_the_models_are_not_loaded(what: str, tmp_path: Path) -> None:
    """transformers draws what is missing anew at each load, and drops what is left over."""
    write_llama(tmp_path)
    change, said = OTHER[what]
    change_weights(tmp_path, change)
    with pytest.raises(InvalidInput, match=said):
        load_causal_lm(tmp_path)


def test_constants_that_older_files_store_and_a_stored_tied_output_are_loaded(tmp_path: Path) -> None:
    model = write_llama(tmp_path)
    stored = model.state_dict()["lm_head.weight"].clone()
    change_weights(
        tmp_path,
        lambda t: t.update(
            {"lm_head.weight": stored, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        ),
    )
    assert torch.equal(load_causal_lm(tmp_path).lm_head.weight, stored)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_loaded_from_the_model_it_was_trained_in_and_lacks_no_layer(
    family: str, tmp_path: Path
) -> None:
    """With a head, which is left out, and without a pooler, which no embedding comes through."""
    write_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    config: PreTrainedConfig = ENCODERS[family]
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert load_encoder(tmp_path).body.config.model_type == config.model_type
    names = list(load_file(tmp_path / "model.safetensors"))
    lost = next(one for one in names if (".0." in one and one.endswith("weight")) or "albert_layers" in one)
    change_weights(tmp_path, lambda t: t.pop(lost))
    with pytest.raises(InvalidInput, match=MISSING):
        load_encoder(tmp_path)


def test_an_encoder_of_more_layers_than_its_configuration_says_is_not_loaded(tmp_path: Path) -> None:
    write_bert(tmp_path, layers=3)
    BertConfig.from_pretrained(tmp_path, num_hidden_layers=2).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=rf"tensor encoder\.layer\.2\..*{SURPLUS}"):
        load_encoder(tmp_path)
