"""A tiny tokenizer with SmolLM2's kind of template, learnt once from the shipped text."""

from importlib import resources
from pathlib import Path

import pytest

from train.data.tokenize import Tokens
from train.data.train_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 tokens, <|endoftext|>, <|im_start|> and <|im_end|> first."""
    out = tmp_path_factory.mktemp("tokenizer") / "tiny"
    with resources.as_file(resources.files("train.evaluate") / "held_out" / "jargon.txt") as text:
        train_tokenizer([text], 512, out)
    return out


@pytest.fixture(scope="session")
def tokens(tokenizer_dir: Path) -> Tokens:
    return Tokens(tokenizer_dir)
