"""Log-likelihoods of held-out examples under a model of any format: the measurements that the gate decides on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from continual.learn.gate import Scores
from continual.recipe import MIN_DOCUMENTS
from everlearn.bundles.bundle import Format
from train.data.store import Example
from train.evaluate.held_out_text import held_out_text
from train.evaluate.logits import onnx_logits, torch_logits
from train.evaluate.perplexity import blocks, log_softmax, negative_log_likelihood
from train.models.load import load_causal_lm

PIECE_TOKENS = 256
"""Held-out text is measured in pieces of this length: what a model's context holds, in little memory."""
GENERAL_PIECE_TOKENS = 128
"""Of each entry of the general text so many tokens are taken before more of any: many documents in few tokens."""
TITLE_CHARS = 40


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


def score_whole(
    model_dir: Path, format: Format, examples: Sequence[Example], on_example: Callable[[int], None]
) -> Scores:
    """The scores of examples of any length, measured in pieces; ``on_example`` hears of each one that is done."""
    cut = [pieces([example]) for example in examples]
    ends = np.cumsum([len(each) for each in cut])
    scores = score_examples(
        model_dir,
        format,
        [piece for each in cut for piece in each],
        lambda done: on_example(int(np.searchsorted(ends, done, side="right"))),
    )
    spans = [slice(end - len(each), end) for each, end in zip(cut, ends.tolist(), strict=True)]
    return Scores(
        tuple(sum(scores.nll[span]) for span in spans), tuple(sum(scores.tokens[span]) for span in spans)
    )


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


def general_examples(tokenizer_file: Path, limit_tokens: int) -> dict[str, list[Example]]:
    """The shipped held text by entry, what stands for everything that no job taught; about ``limit_tokens``.

    The beginnings of all entries come before the rest of any, and ``MIN_DOCUMENTS`` entries at least.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    cut: dict[str, list[Example]] = {}
    for entry in _entries(held_out_text().text):
        ids = np.array(tokenizer.encode(entry, add_special_tokens=False).ids, dtype=np.int32)
        title = entry.partition("\n")[0]
        cut[title] = pieces([Example(ids, np.arange(len(ids)) > 0)], GENERAL_PIECE_TOKENS)
    taken: dict[str, list[Example]] = {}
    total = 0
    for place in range(max(map(len, cut.values()))):
        for title, parts in cut.items():
            if place >= len(parts):
                continue
            if total >= limit_tokens and len(taken) >= MIN_DOCUMENTS:
                return taken
            taken.setdefault(title, []).append(parts[place])
            total += len(parts[place])
    return taken


def _entries(text: str) -> list[str]:
    """An entry begins with its title, a short paragraph that no full stop ends."""
    entries: list[list[str]] = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) < TITLE_CHARS and paragraph.strip()[-1:].isalnum():
            entries.append([])
        entries[-1].append(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in entries]
