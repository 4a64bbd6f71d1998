"""Extractive question answering: where in a context the answer begins and ends, or that it is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.data.labelled.encode import CONTINUES, NO_ANSWER
from train.data.store import TokenStore
from train.data.tokenize import Tokens
from train.evaluate.answers import exact_and_f1
from train.objectives.labelled import IGNORED, held_out, held_rows, inputs_of, rows_of
from train.objectives.objective import RunInputs, Training

MAX_ANSWER_TOKENS = 30
NEVER = -1e9
"""The logit of a token that no answer may begin or end at."""


class QuestionAnswering:
    """The mean of the cross-entropies of the first and the last token, in nats, summed over the windows; the first
    token stands for no answer (as in BERT, arXiv 1810.04805)."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        assert run.store and run.tokenizer_dir
        may_lack = any(not question.spans for question in questions(run.store))
        judge = AnswerJudge(run.held_store, Tokens(run.tokenizer_dir), may_lack) if run.held_store else None
        return Training(cls(), rows_of(run), held_out(held_rows(run), cls(), judge) if judge else None)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _losses(model, batch)[:2]


class AnswerJudge:
    """Exact match and F1 of the best span among a question's windows, by the decoded tokens.

    ``may_lack``: whether a question may have no answer, said where the first token's score is above the best span's.
    """

    def __init__(self, store: TokenStore, tokens: Tokens, may_lack: bool) -> None:
        self.store, self.may_lack = store, may_lack
        self.tokenizer = tokens.with_marks()

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, starts, ends, rows = _losses(model, batch)
        width = starts.shape[1]
        sums = starts[:, :, None] + ends[:, None, :]  # (n, first, last)
        first, last = torch.arange(width)[:, None], torch.arange(width)[None]
        fits = ((last >= first) & (last < first + MAX_ANSWER_TOKENS) & (first > 0)).to(sums.device)
        best, place = sums.masked_fill(~fits, 4 * NEVER).flatten(1).max(1)
        said = [
            batch["document_ids"][rows, 0],
            best,
            place // width,
            place % width,
            starts[:, 0] + ends[:, 0],
        ]
        return loss, count, torch.stack([each.double() for each in said], 1)

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        by_window = {int(row[0]): row[1:] for row in predictions}
        said: list[str] = []
        wanted: list[list[str]] = []
        for question in questions(self.store):
            windows = [by_window[n] for n in question.windows if n in by_window]
            if len(windows) < len(question.windows):
                continue  # beyond what is measured
            best = int(np.argmax([each[0] for each in windows]))
            score, first, last, _ = windows[best]
            lacks = self.may_lack and min(each[3] for each in windows) > score
            span = (question.windows[best], int(first), int(last))
            said.append("" if lacks else self._text(span))
            wanted.append([self._text(each) for each in question.spans])
        return exact_and_f1(said, wanted)

    def _text(self, span: tuple[int, int, int]) -> str:
        window, first, last = span
        return self.tokenizer.decode(self.store[window].ids[first : last + 1].tolist())


@dataclass(frozen=True)
class Question:
    """``windows``: its examples in the store. ``spans``: window, first and last token of each right answer."""

    windows: list[int]
    spans: list[tuple[int, int, int]]


def questions(store: TokenStore) -> Iterator[Question]:
    """Those of a store, in its order."""
    assert store.labels is not None
    question: Question | None = None
    for window in range(len(store)):
        marks = np.array(store.labels[store.offsets[window] : store.offsets[window + 1]])
        if question is None or not marks[0] & CONTINUES:
            if question:
                yield question
            question = Question([], [])
        question.windows.append(window)
        marks[0] = 0
        marks[marks < 0] = 0
        for k in range(int(marks.max()).bit_length() // 2 + 1):
            first, last = (np.flatnonzero(marks & (1 << bit)) for bit in (2 * k, 2 * k + 1))
            if len(first):
                question.spans.append((window, int(first[0]), int(last[0])))
    if question:
        yield question


def _losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum, the number of windows, their logits of the first and last token, float32 (n, seq), and their rows."""
    labels = batch["labels"]
    rows = (labels[:, 0] != IGNORED).nonzero().squeeze(1)
    output = model(**inputs_of(model, batch))
    may_be = (batch["segments"] == 1) & (batch["document_ids"] >= 0)
    may_be = torch.cat([torch.ones_like(may_be[:, :1]), may_be[:, 1:]], 1)[rows]
    starts, ends = (
        logits[rows].float().masked_fill(~may_be, NEVER)
        for logits in (output.start_logits, output.end_logits)
    )
    first, last = _marked(labels[rows])
    loss = (
        nn.functional.cross_entropy(starts, first, reduction="sum")
        + nn.functional.cross_entropy(ends, last, reduction="sum")
    ) / 2
    return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device), starts, ends, rows


def _marked(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first answer that a window has begins and ends, int64 (n,) each; 0 where it has none."""
    marks = labels.clamp(min=0)
    marks[:, 0] &= NO_ANSWER
    first, last = torch.zeros_like(marks[:, 0]), torch.zeros_like(marks[:, 0])
    found = torch.zeros_like(first, dtype=torch.bool)
    for k in range(15):
        begins, ends = ((marks >> bit) & 1 for bit in (2 * k, 2 * k + 1))
        here = begins.any(1) & ~found
        first = torch.where(here, begins.argmax(1), first)
        last = torch.where(here, ends.argmax(1), last)
        found |= here
    return first, last
