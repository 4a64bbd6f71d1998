"""How likely a model, in whatever format, finds held examples: what the gate decides on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from continual.gate import Scores
from everlearn.bundle import Format
from train.data.store import Example
from train.evaluate import (
    blocks,
    held_text,
    load_causal_lm,
    log_softmax,
    negative_log_likelihood,
    onnx_logits,
    torch_logits,
)

PIECE_TOKENS = 256
"""Held text is measured in pieces of this length: more documents, so tighter bounds, for the same tokens."""


def score_examples(
    model_dir: Path, format: Format, examples: Sequence[Example], on_example: Callable[[int], None]
) -> Scores:
    """-log p of each example's targets: onnxruntime for an ONNX decoder, torch in float32 for the others."""
    ids = [example.ids.astype(np.int64) for example in examples]
    logits_of = (
        onnx_logits(model_dir, ids)  # pyright: ignore[reportArgumentType]: rows may differ in length
        if format == "onnx-genai"
        else torch_logits(load_causal_lm(model_dir), ids)  # pyright: ignore[reportArgumentType]
    )
    nll: list[float] = []
    for example, logits in zip(examples, logits_of, strict=True):
        nll.append(_negative_log_likelihood(example, logits))
        on_example(len(nll))
    return Scores(tuple(nll), tuple(int(example.mask[1:].sum()) for example in examples))


def _negative_log_likelihood(example: Example, logits: np.ndarray) -> float:
    """logits: float32 (n, vocab); position i predicts token i + 1."""
    total = 0.0
    targets = example.mask[1:]
    done = 0
    for rows, ids in blocks(logits, example.ids):
        wanted = targets[done : done + len(ids)]
        done += len(ids)
        if wanted.any():
            total += negative_log_likelihood(log_softmax(rows[wanted]), ids[wanted])
    return total


def pieces(examples: Sequence[Example], piece_tokens: int = PIECE_TOKENS) -> list[Example]:
    """Plain text cut to pieces; an example of which only some tokens are targets stays whole."""
    cut: list[Example] = []
    for example in examples:
        step = piece_tokens if example.mask[1:].all() else len(example)
        for start in range(0, len(example), step):
            ids, mask = example.ids[start : start + step], np.array(example.mask[start : start + step])
            mask[:1] = False
            if mask.any():
                cut.append(Example(ids, mask))
    return cut


def general_examples(tokenizer_file: Path, limit_tokens: int) -> list[Example]:
    """The shipped held text as examples: what stands for everything that no job taught."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer_file)).encode(held_text().text, add_special_tokens=False).ids
    kept = np.array(ids[:limit_tokens], dtype=np.int32)
    return pieces([Example(kept, np.arange(len(kept)) > 0)])
