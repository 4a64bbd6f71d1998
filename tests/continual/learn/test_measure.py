"""The gate's measure against what torch says, and the same in both formats of one model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from compress.export import build_export
from compress.recipe import CompressRecipe
from continual.learn.measure import general_examples, pieces, score_examples, score_whole
from tests.support.tiny_models import write_llama
from train.data.store import Example
from train.evaluate.held_out_text import held_out_text
from train.models.load import load_causal_lm


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_llama(directory)
    return directory


@pytest.fixture(scope="module")
def held() -> list[Example]:
    random = np.random.default_rng(0)
    lengths = [2, 7, 64, 65, 66, 200]
    return [
        Example(random.integers(3, 500, n).astype(np.int32), random.random(n) < (0.5 if n > 2 else 2))
        for n in lengths
    ]


def test_the_score_is_torchs_own_cross_entropy_over_the_targets(model_dir: Path, held: list[Example]) -> None:
    model = load_causal_lm(model_dir)
    scores = score_examples(model_dir, "safetensors", held, lambda done: None)
    for example, nll, tokens in zip(held, scores.nll, scores.tokens, strict=True):
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(example.mask)[None], ids, -100)
        with torch.inference_mode():
            mean = float(model(input_ids=ids, labels=labels).loss)
        assert nll / tokens == pytest.approx(mean, rel=1e-4)


@pytest.mark.slow
def test_an_fp32_export_scores_as_its_parent(model_dir: Path, held: list[Example], tmp_path: Path) -> None:
    build_export(model_dir, tmp_path, "generate", CompressRecipe(to="fp32-onnx"))
    parent = score_examples(model_dir, "safetensors", held, lambda done: None)
    export = score_examples(tmp_path, "onnx-genai", held, lambda done: None)
    assert export.tokens == parent.tokens
    assert export.nll == pytest.approx(parent.nll, rel=1e-3)


def test_plain_text_is_cut_and_an_answer_is_not() -> None:
    text = Example(np.arange(25, dtype=np.int32), np.arange(25) > 0)
    chat = Example(np.arange(25, dtype=np.int32), np.arange(25) > 20)
    cut = pieces([text, chat], 10)
    assert [len(one) for one in cut] == [10, 10, 5, 25]
    assert [int(one.mask.sum()) for one in cut] == [9, 9, 4, 4]
    assert np.concatenate([one.ids for one in cut[:3]]).tolist() == list(range(25))


def test_an_example_measured_in_pieces_has_the_sum_of_their_scores(model_dir: Path) -> None:
    random = np.random.default_rng(1)
    ids = [random.integers(3, 500, n).astype(np.int32) for n in (600, 5, 300)]
    whole = [Example(each, np.arange(len(each)) > 0) for each in ids]
    done: list[int] = []
    found = score_whole(model_dir, "safetensors", whole, done.append)
    cut = score_examples(model_dir, "safetensors", pieces(whole), lambda done: None)
    assert found.tokens == (597, 4, 298) and done == [0, 0, 1, 2, 2, 3]
    assert found.nll == pytest.approx((sum(cut.nll[:3]), cut.nll[3], sum(cut.nll[4:])))


def test_the_general_text_is_many_documents(model_dir: Path) -> None:
    general = general_examples(model_dir / "tokenizer.json", 4096)
    tokens = {title: sum(map(len, examples)) for title, examples in general.items()}
    assert len(general) == 29 and {"Acme", "Moore's Law", "Unix"} <= set(general)
    assert 4096 <= sum(tokens.values()) < 4096 + 128
    assert max(tokens.values()) <= 256


@pytest.mark.parametrize("limit", [1, 64, 500])
def test_a_little_of_the_general_text_is_of_enough_documents_to_measure(model_dir: Path, limit: int) -> None:
    assert len(general_examples(model_dir / "tokenizer.json", limit)) == 4


def test_all_of_the_general_text_is_its_29_entries(model_dir: Path) -> None:
    general = general_examples(model_dir / "tokenizer.json", 10**9)
    text = Tokenizer.from_file(str(model_dir / "tokenizer.json")).encode(
        held_out_text().text, add_special_tokens=False
    )
    assert sum(len(one) for examples in general.values() for one in examples) == pytest.approx(
        len(text.ids), rel=0.01
    )
