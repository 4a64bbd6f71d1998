"""Encoder-decoders: which spans are hidden, pairs in shared rows, and T5 from scratch and from a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import InvalidInput, Unsupported
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.train.objectives.conftest import Make
from train.data.corruption.pairs import PairRows, fill_rows
from train.data.corruption.spans import SpanRows, noise, with_sentinels
from train.data.corruption.word_starts import read_vocabulary
from train.data.packing import IGNORED, PADDING, Packer
from train.data.store import Example, open_store, write_store
from train.evaluate.held_out_text import held_out_text
from train.models.packed_rows import refuse_unfit
from train.objectives.seq2seq import Seq2Seq, refuse_without_end, refuse_without_sentinels

END, SENTINELS = 1, tuple(range(699, 599, -1))


@pytest.fixture(scope="module")
def rows(tokenizers: dict[str, Path]) -> SpanRows:
    tokenizer = Tokenizer.from_file(str(tokenizers["unigram"] / "tokenizer.json"))
    encoded = (tokenizer.encode(text).ids for text in held_out_text().text.split("\n\n"))
    examples = [
        Example(np.array(ids, np.int32), np.ones(len(ids), np.bool_)) for ids in encoded if len(ids) > 2
    ]
    return SpanRows(Packer(examples, 64, 0).marked([], [END]), SENTINELS, 0, 0)


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text, with what the target has behind each sentinel in its place."""
    said: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in SENTINELS:
            said[current := token] = []
        else:
            said[current].append(token)  # pyright: ignore[reportPossiblyUnbound]
    return [one for token in source for one in (said[token] if token in SENTINELS else [token])]


def test_sentinels_count_down_and_the_target_restores_the_text(
    rows: SpanRows, tokenizers: dict[str, Path]
) -> None:
    assert read_vocabulary(tokenizers["unigram"]).sentinels == SENTINELS, "ids fall as T5's do"
    batch, plain = rows.batch(0, 50), rows.packer.batch(0, 50)
    last, tokens, hidden = 0, 0, 0
    for line in range(50):
        for piece in set(plain["document_ids"][line]) - {PADDING}:
            text = plain["input_ids"][line][plain["document_ids"][line] == piece].tolist()
            source = batch["input_ids"][line][batch["document_ids"][line] == piece].tolist()
            places = batch["decoder_document_ids"][line] == piece
            target, seen = (
                batch["labels"][line][places].tolist(),
                batch["decoder_input_ids"][line][places].tolist(),
            )
            if not target:
                continue
            used = [token for token in source if token in SENTINELS]
            assert used == list(SENTINELS[: len(used)]) == [token for token in target if token in SENTINELS]
            assert restored(source, target) == text and source[-1] == target[-1] == END
            assert seen == [0, *target[:-1]]
            last += source[-2] in SENTINELS
            tokens, hidden = tokens + len(text) - 1, hidden + len(target) - len(used) - 1
    assert 0.13 < hidden / tokens < 0.17 and 0 < last < 50, "not always at the end"
    again = SpanRows(rows.packer, SENTINELS, 0, 0).batch(10, 1)
    assert (again["input_ids"] == batch["input_ids"][10:11]).all(), (
        "a function of the seed and the row's number"
    )


@pytest.mark.parametrize(
    ("length", "density", "mean"), [(20, 0.55, 1.0), (2, 0.15, 3.0), (3, 0.99, 1.0), (512, 0.15, 3.0)]
)
def test_any_length_and_density_hides_what_it_says_in_spans_apart(
    length: int, density: float, mean: float
) -> None:
    ends = {True: 0, False: 0}
    for seed in range(40):
        hidden = noise(length, 100, seed, density=density, mean_length=mean)
        count = min(max(1, round(length * density)), length - 1)
        spans = int((np.diff(np.concatenate([[False], hidden]).astype(int)) == 1).sum())
        assert hidden.sum() == count and spans == min(max(1, round(count / mean)), length - count + 1)
        ends[bool(hidden[-1])] += 1
        text = np.arange(length)
        assert len(with_sentinels(text, hidden, SENTINELS)) == length - count + spans
    assert ends[True] and (ends[False] or length - count == spans - 1), "not always at the end"


def test_pairs_in_one_row_are_as_each_alone(make: Make) -> None:
    model = make("t5")
    drawn = np.random.default_rng(0)
    pairs = [
        (n, drawn.integers(3, 600, size), drawn.integers(3, 600, to))
        for n, (size, to) in enumerate([(9, 4), (14, 11), (5, 2)])
    ]
    alone = [Seq2Seq()(model, tensors(fill_rows([[pair]], 30, 0))) for pair in pairs]
    for train in (True, False):
        model.train(train)
        loss, targets = Seq2Seq()(model, tensors(fill_rows([pairs], 30, 0)))
        assert float(targets) == 17 == sum(float(count) for _, count in alone)
        assert float(loss.detach()) == pytest.approx(sum(float(each.detach()) for each, _ in alone), rel=1e-5)
    _, source, target = pairs[1]
    theirs = model(input_ids=torch.tensor(source)[None], labels=torch.tensor(target)[None]).loss
    assert float(alone[1][0].detach()) == pytest.approx(11 * float(theirs.detach()), rel=1e-5)


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in batch.items()}


def test_a_stores_examples_are_pairs_each_once_in_an_epoch(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    sizes = [(int(a), int(b)) for a, b in drawn.integers(1, 40, (60, 2))]
    examples = [Example(np.arange(a + b, dtype=np.int32) % 500 + 3, np.arange(a + b) >= a) for a, b in sizes]
    write_store(tmp_path / "store", examples, tokenizer_sha256="0" * 64, vocab_size=600)
    rows = PairRows(open_store(tmp_path / "store"), 40, 0, 0)
    batch = rows.batch(0, rows.rows)
    assert (batch["labels"] != IGNORED).sum() == sum(b for _, b in sizes)
    assert (batch["document_ids"] != PADDING).sum() == sum(a for a, _ in sizes)
    assert len(np.unique(batch["document_ids"])) == 61 and rows.rows < 60
    assert (rows.batch(1, 2, 1, 2)["labels"] != IGNORED).any()


def test_what_cannot_be_packed_or_hidden_is_refused_by_name(tokenizers: dict[str, Path]) -> None:
    with pytest.raises(InvalidInput, match=r"no sentinels .*unigram"):
        refuse_without_sentinels(read_vocabulary(tokenizers["bpe"]), tokenizers["bpe"])
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    bart = BartForConditionalGeneration(BartConfig(vocab_size=99, d_model=32, **sizes))
    with pytest.raises(Unsupported, match="BartForConditionalGeneration lets documents that share a row"):
        refuse_unfit(bart, "text2text")


def test_answers_that_would_not_end_are_refused(tokenizers: dict[str, Path]) -> None:
    for kind in ("unigram", "bpe"):
        refuse_without_end(tokenizers[kind])
    with pytest.raises(InvalidInput, match="no answer would end: seq2seq needs T5's tokenizer"):
        refuse_without_end(tokenizers["wordpiece"])


def test_a_recipe_trains_t5_on_texts_and_goes_on_with_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    texts = held_out_text().text.split("\n\n")
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    common: dict[str, Any] = {
        "sequence_tokens": 64, "batch_tokens": 512, "micro_batch": 8, "optimizer": {"lr": 5e-3}, "dropout": 0, "threads": 1,
    }  # fmt: skip
    architecture = {"family": "t5", "layers": 1, "hidden": 64, "heads": 4, "vocab": 700}
    recipe = common | {
        "name": "t5",
        "architecture": architecture,
        "data": {"train": ["texts.jsonl"], "held_fraction": 0.1},
        "steps": 20,
    }
    version = trained(recipe, tmp_path, "t5@1")
    assert (version.task, version.architecture) == ("text2text", "T5ForConditionalGeneration")
    assert version.recipe["train"]["objective"] == "span-corruption"
    assert version.metrics["held_nll"] < version.metrics["held_nll_before"] - 0.5
    pairs = [{"source": f"say {word}", "target": word} for text in texts[:20] for word in text.split()[:6]]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    further = common | {
        "base": "t5",
        "objective": "seq2seq",
        "data": {"train": ["pairs.jsonl"], "min_chars": 0, "near_duplicates": None},
        "steps": 10,
    }
    again = trained(further, tmp_path, "t5@2")
    assert again.metrics["held_nll"] < again.metrics["held_nll_before"] - 0.5
    registry = Registry(Settings(home=tmp_path / "home"))
    directory = registry.path(registry.resolve("t5@2"))
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    assert (
        model.generate(
            **tokenizer("say network", return_tensors="pt", return_token_type_ids=False), max_new_tokens=5
        ).shape[0]
        == 1
    )


def trained(recipe: dict[str, Any], folder: Path, ref: str) -> Any:
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    said = CliRunner().invoke(app, ["train", "recipe.yaml"])
    assert said.exit_code == 0, said.output
    return Registry(Settings(home=folder / "home")).resolve(ref).manifest
