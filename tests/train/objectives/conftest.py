"""Tokenizers of each kind, learnt from one text, and models of every family, made from scratch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.data.options import TokenizerOptions
from train.data.train_tokenizer import train_tokenizer
from train.evaluate.held_out_text import held_out_text
from train.models.architecture import Architecture
from train.models.from_scratch import from_scratch

VOCABULARY = 700
Make = Callable[..., Any]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text.txt").write_text(held_out_text().text)
    made: dict[str, Path] = {}
    for kind in ("bpe", "wordpiece", "unigram"):
        made[kind] = folder / kind
        train_tokenizer([folder / "text.txt"], VOCABULARY, made[kind], None, TokenizerOptions(kind=kind))
    return made


@pytest.fixture
def make(tokenizers: dict[str, Path]) -> Make:
    """A model of a family, ready to predict; without dropout unless asked."""

    def made(family: str, dropout: float | None = 0.0, **sizes: Any) -> Any:
        sizes = {"layers": 2, "hidden": 32, "heads": 4, "context": 96, "vocab": VOCABULARY} | sizes
        architecture = Architecture.model_validate({"family": family, **sizes})
        torch.manual_seed(0)
        kind = tokenizers[architecture.of.tokenizer]
        return from_scratch(architecture, architecture.of.task, kind, dropout).eval()

    return made
