"""Which tokens of a vocabulary begin a word, so that words are hidden whole; and which stand for no text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from everlearn.bundles.contents import read_json_object
from everlearn.errors import InvalidInput
from train.data.cleaning.words import LETTER, classes

SPACE = "▁"
SENTINEL = re.compile(r"<extra_id_(\d+)>")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Vocabulary:
    """``begins`` and ``special``: bool (vocabulary,), whether a token begins a word, and whether it stands for no text.

    ``mask``: the id that hides a token, None where there is none. ``sentinels``: ids of <extra_id_0>, <extra_id_1>, …
    """

    begins: NDArray[np.bool_]
    special: NDArray[np.bool_]
    mask: int | None
    sentinels: tuple[int, ...]

    @property
    def ordinary(self) -> NDArray[np.int64]:
        """Ids of the tokens of texts, int64 (n,)."""
        return np.flatnonzero(~self.special)


def read_vocabulary(tokenizer_dir: Path) -> Vocabulary:
    """Of a Hugging Face directory."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    size = max(vocab.values()) + 1
    special, begins = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    special[[id for id, token in added.items() if token.special]] = True
    surface = _surfaces(json.loads(tokenizer.to_str()))
    for token, id in vocab.items():
        begins[id] = special[id] or surface(token)
    file = tokenizer_dir / "tokenizer_config.json"
    said: Any = read_json_object(file).get("mask_token") if file.is_file() else None
    named = [said.get("content") if isinstance(said, dict) else said, *MASKS]
    sentinels = {int(found[1]): id for token, id in vocab.items() if (found := SENTINEL.fullmatch(token))}
    special[list(sentinels.values())] = True
    for unknown in ("[UNK]", "<unk>"):
        if unknown in vocab:
            special[vocab[unknown]] = True
    count = next(n for n in range(len(sentinels) + 1) if n not in sentinels)
    return Vocabulary(
        begins,
        special,
        next((vocab[token] for token in named if token in vocab), None),
        tuple(sentinels[n] for n in range(count)),
    )


def refuse_without_mask(vocabulary: Vocabulary, tokenizer_dir: Path) -> int:
    """The id that hides a token. Raises InvalidInput where the tokenizer has none."""
    if vocabulary.mask is None:
        raise InvalidInput(
            f"{tokenizer_dir / 'tokenizer.json'} has no token that hides another ([MASK] or <mask>): masked-lm needs "
            "the tokenizer of a masked language model, or architecture.tokenizer: wordpiece",
            param="objective",
        )
    return vocabulary.mask


def _surfaces(said: dict[str, Any]) -> Any:
    """A function from a token to whether it begins a word, by the kind of tokenizer.

    Characters that are no letters, and those of scripts written without spaces, are a word each.
    """
    model = said["model"]
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda token: not token.startswith(prefix)
    if '"ByteLevel"' in json.dumps([said.get("pre_tokenizer"), said.get("decoder")]):
        of = bytes_of_characters()
        return lambda token: _begins(bytes(of[one] for one in token if one in of).decode("utf-8", "replace"))
    return lambda token: not BYTE.fullmatch(token) and _begins(token.replace(SPACE, " "))


def _begins(text: str) -> bool:
    return bool(text) and text[0] != "\N{REPLACEMENT CHARACTER}" and classes()[ord(text[0])] != LETTER


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's: each byte as the character that byte-level BPE writes for it."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    table = {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table
