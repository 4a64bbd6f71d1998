"""Token classification: the tag of each word, at its first piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.evaluate.labels import accuracy_and_f1, is_bio, span_f1
from train.objectives.labelled import IGNORED, held_out, held_rows, inputs_of, rows_of
from train.objectives.objective import RunInputs, Training


class TokenClassification:
    """Cross-entropy of the words' tags, in nats, summed over the words."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        assert run.store and run.store.card.labels
        judge = TagJudge(run.store.card.labels)
        return Training(cls(run.recipe.label_smoothing), rows_of(run), held_out(held_rows(run), cls(), judge))

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _losses(model, batch, self.smoothing)[:2]


class TagJudge:
    """Accuracy and macro F1 of the words; where tags are BIO, precision, recall and F1 of whole spans as well.

    A sentence of several windows counts as several.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, logits, places = _losses(model, batch)
        said = [batch["document_ids"][places], batch["labels"][places], logits.argmax(-1)]
        return loss, count, torch.stack(said, 1).double()

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        example, gold, said = predictions.T.astype(np.int64)
        figures = accuracy_and_f1(gold, said)
        if is_bio(self.names):
            order = np.argsort(example, kind="stable")  # the words of one are in their order already
            cuts = np.flatnonzero(np.diff(example[order])) + 1
            sentences = [
                [[self.names[tag] for tag in part] for part in np.split(tags[order], cuts)]
                for tags in (gold, said)
            ]
            figures |= span_f1(*sentences)
        return figures


def _losses(
    model: nn.Module, batch: Mapping[str, Tensor], smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, the number of words, their logits (words, tags), and where they are, bool (rows, seq)."""
    places = batch["labels"] != IGNORED
    logits = model(**inputs_of(model, batch)).logits[places].float()
    loss = nn.functional.cross_entropy(
        logits, batch["labels"][places], reduction="sum", label_smoothing=smoothing
    )
    return loss, torch.tensor(len(logits), dtype=torch.float32, device=loss.device), logits, places
