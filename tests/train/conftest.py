"""A model with two layers, and documents it can learn: arithmetic sequences of token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny_models import write_llama
from train.data.packing import Packer
from train.data.store import Example, open_store, write_store
from train.data.tokenize import Tokens
from train.loop import fit
from train.objectives.causal import CausalLM, next_token_validation
from train.recipe import TrainRecipe
from train.report import StepReport


def sequences(count: int, seed: int) -> Iterator[Example]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        length, start = int(rng.integers(5, 90)), int(rng.integers(0, 500))
        ids = ((start + np.arange(length) * 7) % 500 + 3).astype(np.int32)
        mask = np.arange(length) >= length // 4
        yield Example(ids, mask)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory."""
    directory = tmp_path_factory.mktemp("base")
    write_llama(directory)
    return directory


@pytest.fixture(scope="session")
def stores(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores ``train`` and ``held``."""
    folder = tmp_path_factory.mktemp("stores")
    tokens = Tokens(base)
    for name, count, seed in (("train", 150, 0), ("held", 23, 1)):
        write_store(
            folder / name,
            sequences(count, seed),
            tokenizer_sha256=tokens.sha256,
            vocab_size=tokens.vocab_size,
        )
    return folder


@pytest.fixture
def recipe(stores: Path) -> dict[str, Any]:
    """A recipe that teaches the model in twenty steps."""
    return {
        "data": {"store": str(stores / "train"), "held_store": str(stores / "held")},
        "sequence_tokens": 64,
        "batch_tokens": 256,
        "micro_batch": 2,
        "steps": 20,
        "optimizer": {"lr": 3e-3},
        "dtype": "float32",
        "threads": 1,
        "checkpoint": {"every_s": 1e9},
    }


def run(
    base: Path, recipe: dict[str, Any], run_dir: Path, dtype: torch.dtype | None = None, **options: Any
) -> tuple[LlamaForCausalLM, list[StepReport], Any]:
    """Fits in this process: the model, a report for each step, the result."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    reports: list[StepReport] = []
    wanted = TrainRecipe.model_validate(recipe)
    packer = Packer(open_store(Path(recipe["data"]["store"])), wanted.sequence_tokens, wanted.seed)
    held = Packer(open_store(Path(recipe["data"]["held_store"])), wanted.sequence_tokens, 0)
    result = fit(
        model,
        CausalLM(),
        packer,
        wanted,
        run_dir=run_dir,
        validate=next_token_validation(held),
        on_step=reports.append,
        **options,
    )
    return model, reports, result
