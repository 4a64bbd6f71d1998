"""A model of ours that reads texts of any length in windows, several at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everlearn.bundles.tasks import Task
from everlearn.bundles.text_positions import first_position
from train.data.packing import PADDING
from train.data.tokenize import Tokens, marks
from train.models.load import load_model

MAX_CONTEXT = 512
"""Tokens of a window, where the model reads more."""
BATCH_TOKENS = 8192

Window = tuple[int, list[int]]
"""A number of the caller's, and the ids of a part of a text between the model's marks."""


class WindowedModel:
    """``labels``: of its classes, by number. ``room``: tokens of a text that one window has."""

    def __init__(self, model_dir: Path, task: Task) -> None:
        self.model = load_model(model_dir, task)
        self.tokenizer, self.around = Tokens(model_dir).with_marks(), marks(model_dir)
        text = self.model.config.get_text_config()
        context = getattr(text, "max_position_embeddings", None) or MAX_CONTEXT
        context = min(MAX_CONTEXT, context - first_position(text.model_type, text.pad_token_id))
        self.room = context - sum(map(len, self.around))

    def window(self, number: int, ids: Sequence[int]) -> Window:
        before, after = self.around
        return number, [*before, *ids, *after]


def labels_of(model_dir: Path) -> list[str]:
    """Of a model's classes, by number; empty where its config.json names none."""
    named = json.loads((model_dir / "config.json").read_bytes()).get("id2label") or {}
    return [named[number] for number in sorted(named, key=int)]


def inputs_of_rows(rows: Sequence[list[int]]) -> dict[str, Tensor]:
    """A batch as ``train.objectives.labelled`` takes it; padded behind."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    documents = torch.full((len(rows), longest), PADDING, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
        documents[line, : len(row)] = line
    return {"input_ids": ids, "document_ids": documents, "segments": torch.zeros_like(ids)}


def batches(windows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Of at most BATCH_TOKENS with their padding; the windows ascend by length."""
    begin = 0
    for end in range(1, len(windows) + 1):
        last = end == len(windows)
        if last or (end - begin + 1) * len(windows[end][1]) > BATCH_TOKENS:
            yield windows[begin:end]
            begin = end
