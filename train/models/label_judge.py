"""How probable a classifier finds one of its labels, for texts of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from everlearn.bundles.text_positions import first_position
from everlearn.errors import InvalidInput
from train.data.packing import PADDING
from train.data.tokenize import Tokens, marks
from train.models.load import load_model
from train.objectives.labelled import sequence_logits

MAX_CONTEXT = 512
"""Tokens of a window, where the model reads more."""
MAX_WINDOWS = 4
WINDOW_CHARS = 6000
"""Of texts that are longer than so many windows, so much is read of each."""
BATCH_TOKENS = 8192

Window = tuple[int, list[int]]
"""The number of a text, and the ids of a part of it between the model's marks."""


class LabelJudge:
    """A model of task ``classify``, and one of its labels. Raises InvalidInput where it has no such label."""

    def __init__(self, model_dir: Path, label: str) -> None:
        config = json.loads((model_dir / "config.json").read_bytes())
        labels = {name: int(number) for number, name in (config.get("id2label") or {}).items()}
        if label not in labels:
            raise InvalidInput(
                f"data.harmful.classifier: {model_dir.name} has no label {label!r}; it has "
                f"{', '.join(labels) or 'none: it is no classifier'}",
                param="data.harmful.classifier.label",
            )
        self._label, self._one_of_many = (
            labels[label],
            config.get("problem_type") != "multi_label_classification",
        )
        self._model = load_model(model_dir, "classify")
        self._tokenizer, self._around = Tokens(model_dir).with_marks(), marks(model_dir)
        text = self._model.config.get_text_config()
        context = getattr(text, "max_position_embeddings", None) or MAX_CONTEXT
        self._room = min(MAX_CONTEXT, context - first_position(text.model_type, text.pad_token_id)) - sum(
            map(len, self._around)
        )

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The label's probability in the window of each text that has most of it: of the first, the last, and those between,
        at most four."""
        windows = sorted(self._windows(texts), key=lambda window: len(window[1]))
        worst = [0.0] * len(texts)
        for batch in _batches(windows):
            for (number, _), score in zip(batch, self._probabilities([ids for _, ids in batch]), strict=True):
                worst[number] = max(worst[number], score)
        return worst

    def _windows(self, texts: Sequence[str]) -> Iterator[Window]:
        excerpts = [_excerpts(text) for text in texts]
        encoded = iter(
            self._tokenizer.encode_batch(
                [each for some in excerpts for each in some], add_special_tokens=False
            )
        )
        before, after = self._around
        for number, some in enumerate(excerpts):
            ids = [next(encoded).ids for _ in some]
            for part in self._parts(ids[0]) if len(ids) == 1 else self._of_excerpts(ids):
                yield number, [*before, *part, *after]

    def _parts(self, ids: list[int]) -> list[list[int]]:
        """Of a whole text."""
        parts = [ids[at : at + self._room] for at in range(0, len(ids), self._room)]
        if len(parts) <= MAX_WINDOWS:
            return parts
        return [parts[round(at)] for at in np.linspace(0, len(parts) - 1, MAX_WINDOWS)]

    def _of_excerpts(self, ids: list[list[int]]) -> list[list[int]]:
        """The begin of each, and the end of the last."""
        return [*(each[: self._room] for each in ids[:-1]), ids[-1][-self._room :]]

    @torch.no_grad()
    def _probabilities(self, rows: Sequence[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        documents = torch.full((len(rows), longest), PADDING, dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, : len(row)] = torch.tensor(row)
            documents[line, : len(row)] = line
        batch = {"input_ids": ids, "document_ids": documents, "segments": torch.zeros_like(ids)}
        logits = sequence_logits(self._model, batch)  # (rows, labels)
        found = torch.softmax(logits, -1) if self._one_of_many else torch.sigmoid(logits)
        return found[:, self._label].tolist()


def _excerpts(text: str) -> list[str]:
    """The whole, or of a long one the first, the last and two parts between."""
    if len(text) <= MAX_WINDOWS * WINDOW_CHARS:
        return [text]
    begins = np.linspace(0, len(text) - WINDOW_CHARS, MAX_WINDOWS).astype(int).tolist()
    return [text[at : at + WINDOW_CHARS] for at in begins]


def _batches(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    """Of at most BATCH_TOKENS with their padding, ascending by length."""
    begin = 0
    for end in range(1, len(windows) + 1):
        last = end == len(windows)
        if last or (end - begin + 1) * len(windows[end][1]) > BATCH_TOKENS:
            yield windows[begin:end]
            begin = end
