"""A tokenizer of one's own: what it writes, it reads; and transformers takes it."""

from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from everlearn.errors import Conflict, InvalidInput
from train.data.examples import Chat
from train.data.tokenize import Tokens
from train.data.train_tokenizer import train_tokenizer


@pytest.fixture
def prose() -> Path:
    with resources.as_file(resources.files("train.evaluate") / "held_out" / "jargon.txt") as path:
        return path


def test_transformers_reads_it_and_writes_the_same_conversation(tokenizer_dir: Path, tokens: Tokens) -> None:
    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    chat = Chat([{"role": "user", "content": "Wo? 世界 12"}, {"role": "assistant", "content": "Da."}])
    (example,) = tokens.encode(chat, 1000)
    ids = theirs.apply_chat_template(chat.messages, return_dict=False)
    assert ids[: len(example)] == example.ids.tolist() and theirs.decode(ids[len(example) :]) == "\n"
    assert (
        (len(theirs), theirs.eos_token_id, theirs.pad_token_id)
        == (512, 2, 2)
        == (tokens.vocab_size, *tokens.eos * 2)
    )


def test_every_character_can_be_written_and_digits_stand_alone(tokenizer_dir: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    text = "naïve 世界 🙂 \x00\u200b 2024\r\n\ttab"
    assert theirs.decode(theirs(text).input_ids) == text
    assert len(theirs("2024").input_ids) == 4


def test_the_same_files_give_the_same_bytes(tokenizer_dir: Path, prose: Path, tmp_path: Path) -> None:
    train_tokenizer([prose], 512, tmp_path / "again")
    for file in tokenizer_dir.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    with pytest.raises(Conflict, match="exists already"):
        train_tokenizer([prose], 512, tmp_path / "again")


def test_sizes_that_cannot_be_are_refused_and_leave_nothing(prose: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"vocab_size is 100; bytes and special tokens alone are 259"):
        train_tokenizer([prose], 100, tmp_path / "out")
    (tmp_path / "small.txt").write_text("A few words.")
    with pytest.raises(InvalidInput, match=r"the texts give \d+ tokens, not 5000"):
        train_tokenizer([tmp_path / "small.txt"], 5000, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small.txt"]
