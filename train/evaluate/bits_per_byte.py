"""Bits per byte: a loss that models with different tokenizers can be compared by.

The sum of the losses of tokens over the bytes of the text that they stand for, in bits (Gao et al., 2020, arXiv
2101.00027). Bytes are those of each token, so it is known for tokenizers that write texts as they are: byte-level BPE,
and pieces with ▁ for a space.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from train.data.corruption.word_starts import BYTE, SPACE, bytes_of_characters
from train.data.packing import IGNORED
from train.objectives.objective import Batches


def token_bytes(tokenizer_dir: Path) -> NDArray[np.int64] | None:
    """Of each id, int64 (vocabulary,), special tokens none; None where the tokenizer does not give texts back as they were."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    said = json.loads(tokenizer.to_str())
    if said["model"]["type"] == "WordPiece" or said.get("normalizer"):
        return None
    by_characters = '"ByteLevel"' in json.dumps([said.get("pre_tokenizer"), said.get("decoder")])
    of = bytes_of_characters()
    added = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    sizes = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    for token, id in vocab.items():
        if id in added:
            continue
        if by_characters and all(one in of for one in token):
            sizes[id] = len(token)
        else:
            sizes[id] = 1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())
    return sizes


def bytes_per_target(batches: Batches, rows: int, sizes: NDArray[np.int64]) -> float | None:
    """In the mean over the first ``rows`` rows, as validation measures them; None where no target stands for text."""
    targets = total = 0
    for number in range(rows):
        labels = batches.batch(number, 1)["labels"]
        wanted = labels[labels != IGNORED]
        targets, total = targets + len(wanted), total + int(sizes[wanted].sum())
    return total / targets if total else None


def bits_per_byte(nats_per_target: float, bytes_per_target: float) -> float:
    """Tokens that end a text cost bits, and stand for no byte."""
    return round(nats_per_target / math.log(2) / bytes_per_target, 6)
