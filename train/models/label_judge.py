"""How probable a classifier finds one of its labels, for texts of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from everlearn.errors import InvalidInput
from train.models.windowed import Window, WindowedModel, batches, inputs_of_rows, labels_of
from train.objectives.labelled import sequence_logits

MAX_WINDOWS = 4
WINDOW_CHARS = 6000
"""Of texts that are longer than so many windows, so much is read of each."""


class LabelJudge:
    """A model of task ``classify``, and one of its labels. Raises InvalidInput where it has no such label."""

    def __init__(self, model_dir: Path, label: str) -> None:
        labels = labels_of(model_dir)
        if label not in labels:
            raise InvalidInput(
                f"data.harmful.classifier: {model_dir.name} has no label {label!r}; it has "
                f"{', '.join(labels) or 'none: it is no classifier'}",
                param="data.harmful.classifier.label",
            )
        config = json.loads((model_dir / "config.json").read_bytes())
        self._label = labels.index(label)
        self._one_of_many = config.get("problem_type") != "multi_label_classification"
        self._read = WindowedModel(model_dir, "classify")

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The label's probability in the window of each text that has most of it: of the first, the last, and those between,
        at most four."""
        windows = sorted(self._windows(texts), key=lambda window: len(window[1]))
        worst = [0.0] * len(texts)
        for batch in batches(windows):
            for (number, _), score in zip(batch, self._probabilities([ids for _, ids in batch]), strict=True):
                worst[number] = max(worst[number], score)
        return worst

    def _windows(self, texts: Sequence[str]) -> Iterator[Window]:
        excerpts = [_excerpts(text) for text in texts]
        encoded = iter(
            self._read.tokenizer.encode_batch(
                [each for some in excerpts for each in some], add_special_tokens=False
            )
        )
        for number, some in enumerate(excerpts):
            ids = [next(encoded).ids for _ in some]
            for part in self._parts(ids[0]) if len(ids) == 1 else self._of_excerpts(ids):
                yield self._read.window(number, part)

    def _parts(self, ids: list[int]) -> list[list[int]]:
        """Of a whole text."""
        parts = [ids[at : at + self._read.room] for at in range(0, len(ids), self._read.room)]
        if len(parts) <= MAX_WINDOWS:
            return parts
        return [parts[round(at)] for at in np.linspace(0, len(parts) - 1, MAX_WINDOWS)]

    def _of_excerpts(self, ids: list[list[int]]) -> list[list[int]]:
        """The begin of each, and the end of the last."""
        return [*(each[: self._read.room] for each in ids[:-1]), ids[-1][-self._read.room :]]

    @torch.no_grad()
    def _probabilities(self, rows: Sequence[list[int]]) -> list[float]:
        logits = sequence_logits(self._read.model, inputs_of_rows(rows))  # (rows, labels)
        found = torch.softmax(logits, -1) if self._one_of_many else torch.sigmoid(logits)
        return found[:, self._label].tolist()


def _excerpts(text: str) -> list[str]:
    """The whole, or of a long one the first, the last and two parts between."""
    if len(text) <= MAX_WINDOWS * WINDOW_CHARS:
        return [text]
    begins = np.linspace(0, len(text) - WINDOW_CHARS, MAX_WINDOWS).astype(int).tolist()
    return [text[at : at + WINDOW_CHARS] for at in begins]
