"""Masked language modeling: which words are hidden, how, and that packed texts are as each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import InvalidInput, Unsupported
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.train.objectives.conftest import Make
from train.data.corruption.masking import MAX_WORD, MaskedRows, word_spans
from train.data.corruption.word_starts import Vocabulary, read_vocabulary, refuse_without_mask
from train.data.packing import IGNORED, PADDING, Packer
from train.data.store import Example
from train.data.tokenize import marks
from train.evaluate.held_out_text import held_out_text
from train.models.packed_inputs import encoder_inputs
from train.models.packed_rows import refuse_unfit
from train.objectives.masked import MaskedLM

SEQUENCE = 64


def examples(tokenizer_dir: Path) -> list[Example]:
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    texts = held_out_text().text.split("\n\n")
    encoded = (np.array(tokenizer.encode(text).ids, dtype=np.int32) for text in texts)
    return [Example(ids, np.ones(len(ids), np.bool_)) for ids in encoded if len(ids) > 2]


@pytest.fixture(scope="module")
def vocabulary(tokenizers: dict[str, Path]) -> Vocabulary:
    return read_vocabulary(tokenizers["wordpiece"])


@pytest.fixture(scope="module")
def packer(tokenizers: dict[str, Path]) -> Packer:
    return Packer(examples(tokenizers["wordpiece"]), SEQUENCE, 0).marked(*marks(tokenizers["wordpiece"]))


def rows(packer: Packer, vocabulary: Vocabulary, seed: int = 0) -> MaskedRows:
    assert vocabulary.mask is not None
    return MaskedRows(packer, vocabulary, vocabulary.mask, seed)


def test_every_piece_of_a_text_stands_between_cls_and_sep_once(packer: Packer) -> None:
    batch = packer.rows_of(range(packer.rows))
    for ids, documents in zip(batch["input_ids"], batch["document_ids"], strict=True):
        for piece in set(documents) - {PADDING}:
            tokens = ids[documents == piece].tolist()
            assert (tokens[0], tokens[-1]) == (2, 3) and not {2, 3} & set(tokens[1:-1])


def test_masks_are_a_function_of_the_seed_and_the_rows_number(packer: Packer, vocabulary: Vocabulary) -> None:
    masked = rows(packer, vocabulary)
    whole = masked.batch(3, 4)
    for part in range(4):
        for alone in (rows(packer, vocabulary).batch(12 + part, 1), masked.batch(3, 1, part, 4)):
            assert all((whole[key][part : part + 1] == alone[key]).all() for key in whole)
    later = masked.batch((12 + packer.rows) // 4, 4), rows(packer, vocabulary, 1).batch(3, 4)
    assert all((whole["labels"] != other["labels"]).any() for other in later)


def test_fifteen_percent_are_hidden_in_whole_words_and_no_mark_or_padding_is(
    packer: Packer, vocabulary: Vocabulary
) -> None:
    count = 60
    masked, plain = rows(packer, vocabulary).batch(0, count), packer.batch(0, count)
    hidden = masked["labels"] != IGNORED
    usable = (plain["document_ids"] != PADDING) & ~vocabulary.special[plain["input_ids"]]
    assert not (hidden & ~usable).any() and (plain["document_ids"] == PADDING).any()
    assert (masked["labels"][hidden] == plain["input_ids"][hidden]).all()
    assert 0.14 < hidden.sum() / usable.sum() < 0.17
    inner = (~vocabulary.begins[plain["input_ids"]] & usable)[:, 1:] & usable[:, :-1]
    assert (hidden[:, 1:] == hidden[:, :-1])[inner].all() and inner.sum() > 100, "##pieces go as those before"
    seen, before = masked["input_ids"][hidden], plain["input_ids"][hidden]
    assert 0.77 < (seen == vocabulary.mask).mean() < 0.83
    assert 0.07 < (seen == before).mean() < 0.13
    assert (masked["input_ids"] == plain["input_ids"])[~hidden].all()
    assert not vocabulary.special[seen[seen != vocabulary.mask]].any()


def test_words_begin_where_each_kind_of_tokenizer_says(tokenizers: dict[str, Path]) -> None:
    for kind in ("bpe", "wordpiece", "unigram"):
        file, begins = tokenizers[kind] / "tokenizer.json", read_vocabulary(tokenizers[kind]).begins
        encoded = Tokenizer.from_file(str(file)).encode(
            " electroencephalography, 学习", add_special_tokens=False
        )
        starts = [at for at, id in enumerate(encoded.ids) if begins[id]]
        words = [encoded.offsets[at][0] for at in starts]
        assert words[0] <= 1 and 23 in words and len([one for one in words if one < 23]) <= 2, (
            kind,
            encoded.tokens,
        )
    run = np.zeros(40, np.bool_)
    assert word_spans(run, ~run) == [(0, MAX_WORD), (MAX_WORD, 2 * MAX_WORD), (2 * MAX_WORD, 40)]


def test_a_text_without_words_is_counted_and_gives_no_nan(
    tokenizers: dict[str, Path], vocabulary: Vocabulary, make: Make
) -> None:
    nothing = Example(np.array([2, 1, 1, 3], np.int32), np.ones(4, np.bool_))  # [CLS] [UNK] [UNK] [SEP]
    packer = Packer([nothing], SEQUENCE, 0).marked([2], [3])
    assert packer.pieces_of(vocabulary.special) == 1 and packer.tokens == 4
    batch = {key: torch.as_tensor(value) for key, value in rows(packer, vocabulary).batch(0, 1).items()}
    model = make("bert")
    loss, targets = MaskedLM()(model, batch)
    loss.backward()
    assert (float(loss.detach()), float(targets)) == (0, 0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_packed_texts_have_the_logits_that_each_has_alone(make: Make, family: str, attention: str) -> None:
    """Training and evaluation; ModernBERT's layers that look a short way only look no further than it."""
    model = make(family)
    model.set_attn_implementation(attention)
    if family == "modernbert":
        model.config.sliding_window = 4
        for layer in model.model.layers:
            layer.attn.sliding_window = layer.attn.sliding_window and 5
    ids = torch.randint(5, 700, (1, 60), generator=torch.Generator().manual_seed(0))
    lengths = (37, 23)
    batch = {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "document_ids": torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None],
    }
    for train in (True, False):
        model.train(train)
        with torch.no_grad():
            alone = torch.cat([model(part).logits for part in ids.split(lengths, 1)], 1)
            packed = model(**encoder_inputs(model, batch)).logits
        torch.testing.assert_close(packed, alone, atol=2e-6, rtol=1e-4)
        leak = encoder_inputs(model, batch | {"document_ids": torch.zeros_like(ids)})
        assert (model(**leak).logits - alone).abs().max() > 1e-4, "or the test would see no leak"


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_the_loss_is_transformers_own_of_the_whole_logits(
    make: Make, family: str, packer: Packer, vocabulary: Vocabulary
) -> None:
    model = make(family)
    batch = {key: torch.as_tensor(value) for key, value in rows(packer, vocabulary).batch(0, 3).items()}
    loss, targets = MaskedLM()(model, batch)
    loss.backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = model(**encoder_inputs(model, batch), labels=batch["labels"]).loss
    (theirs * targets).backward()
    assert float(loss / targets) == pytest.approx(float(theirs), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_or_a_model_that_hides_nothing_is_refused_by_name(
    tokenizers: dict[str, Path], make: Make
) -> None:
    with pytest.raises(InvalidInput, match=r"no token that hides another .*wordpiece"):
        refuse_without_mask(read_vocabulary(tokenizers["bpe"]), tokenizers["bpe"])
    with pytest.raises(Unsupported, match="LlamaForCausalLM"):
        refuse_unfit(make("llama"), "fill_mask")


def test_a_recipe_makes_a_masked_model_that_transformers_opens_and_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    texts = held_out_text().text.split("\n\n")
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    architecture = {"family": "bert", "layers": 2, "hidden": 64, "heads": 4, "context": 128, "vocab": 700}
    recipe: dict[str, Any] = {
        "name": "bert",
        "architecture": architecture,
        "data": {"train": ["texts.jsonl"], "held_fraction": 0.1},
        "sequence_tokens": 128,
        "batch_tokens": 1024,
        "micro_batch": 4,
        "steps": 20,
        "optimizer": {"lr": 5e-3},
        "dropout": 0,
        "threads": 1,
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    said = CliRunner().invoke(app, ["train", "recipe.yaml"])
    assert said.exit_code == 0, said.output
    registry = Registry(Settings(home=tmp_path / "home"))
    version = registry.resolve("bert@1")
    made = version.manifest
    assert (made.task, made.architecture, made.recipe["train"]["objective"]) == (
        "fill_mask",
        "BertForMaskedLM",
        "masked-lm",
    )
    assert made.metrics["held_nll"] < made.metrics["held_nll_before"] - 0.4
    assert made.metrics["texts_without_words"] == 0
    directory = registry.path(version)
    model = AutoModelForMaskedLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    assert len(fill(f"the {tokenizer.mask_token} of the network")) == 5
    further = {key: value for key, value in recipe.items() if key not in ("architecture", "name")}
    Path("more.yaml").write_text(json.dumps(further | {"base": "bert", "objective": "masked-lm", "steps": 2}))
    said = CliRunner().invoke(app, ["train", "more.yaml"])
    assert said.exit_code == 0, said.output
    again = registry.resolve("bert@2").manifest
    assert again.metrics["held_nll_before"] == pytest.approx(made.metrics["held_nll"], abs=1e-4)
