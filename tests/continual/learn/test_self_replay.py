"""What a real tiny model writes down of itself, against the distribution it is drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from continual.learn.self_replay import generate_examples, start_tokens
from continual.recipe import Generation
from tests.support.tiny_models import write_llama
from train.models.load import load_causal_lm

OPTIONS = Generation(tokens=400, sample_tokens=20, batch=8)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_llama(directory)
    return directory


def test_every_token_but_the_start_is_a_target_and_the_budget_is_met(model_dir: Path) -> None:
    examples = generate_examples(model_dir, OPTIONS, seed=0)
    assert sum(map(len, examples)) == 400
    assert all(len(one) == 20 and one.mask.tolist() == [False] + [True] * 19 for one in examples)


def test_half_of_the_samples_begin_as_a_chat_and_half_as_a_document(model_dir: Path) -> None:
    examples = generate_examples(model_dir, OPTIONS, seed=0)
    config = load_causal_lm(model_dir).config
    assert start_tokens(model_dir, config) == [1, 0]
    assert [int(one.ids[0]) for one in examples] == [1, 0] * 10


def test_the_same_seed_writes_the_same_and_another_seed_something_else(model_dir: Path) -> None:
    first, again, other = (generate_examples(model_dir, OPTIONS, seed) for seed in (3, 3, 4))
    assert [one.ids.tolist() for one in first] == [one.ids.tolist() for one in again]
    assert [one.ids.tolist() for one in first] != [one.ids.tolist() for one in other]


def test_samples_follow_the_models_own_distribution(model_dir: Path) -> None:
    """The mean surprise of the samples is the model's entropy: neither cut off nor sharpened."""
    examples = generate_examples(model_dir, Generation(tokens=6400, sample_tokens=16, batch=100), seed=1)
    ids = torch.tensor(np.stack([one.ids for one in examples]), dtype=torch.int64)
    with torch.inference_mode():
        said = torch.log_softmax(load_causal_lm(model_dir)(input_ids=ids).logits[:, :-1], -1)
    surprise = -said.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (samples, tokens - 1)
    entropy = -(said.exp() * said).sum(-1)
    error = (surprise - entropy).std() / surprise.numel() ** 0.5
    assert abs((surprise - entropy).mean()) < 4 * error
