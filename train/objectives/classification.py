"""Classification: the label of a text, or of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn.errors import ConfigError
from everlearn.suggest import did_you_mean
from train.data.store import TokenStore
from train.evaluate.labels import accuracy_and_f1
from train.objectives.labelled import (
    example_numbers,
    first_labels,
    held_out,
    held_rows,
    rows_of,
    sequence_logits,
)
from train.objectives.objective import RunInputs, Training
from train.recipe import Classification as Settings


class Classification:
    """Cross-entropy of each text's label, in nats. ``weights``: float32 (labels,), what an example of each counts, so
    that the mean is that of torch's weighted cross-entropy; ``smoothing``: of the labels, as torch's."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        assert run.store and run.store.card.labels
        weights = class_weights(run.recipe.classification, run.store.card.labels, run.store)
        objective = cls(weights, run.recipe.label_smoothing)
        return Training(
            objective, rows_of(run), held_out(held_rows(run), cls(), ClassJudge(len(run.store.card.labels)))
        )

    def __init__(self, weights: Tensor | None = None, smoothing: float = 0.0) -> None:
        self.weights, self.smoothing = weights, smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels, rows = first_labels(batch)
        logits = sequence_logits(model, batch)[rows]
        weights = None if self.weights is None else self.weights.to(logits.device)
        loss = nn.functional.cross_entropy(
            logits, labels, weight=weights, reduction="sum", label_smoothing=self.smoothing
        )
        count = len(rows) if weights is None else weights[labels].sum()
        return loss, torch.as_tensor(count, dtype=torch.float32, device=loss.device)


class ClassJudge:
    """Accuracy, and the mean of the labels' F1 scores."""

    def __init__(self, labels: int) -> None:
        self.labels = labels

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        labels, rows = first_labels(batch)
        logits = sequence_logits(model, batch)[rows]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        said = torch.stack([example_numbers(batch)[rows], labels, logits.argmax(-1)], 1).double()
        return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device), said

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        _, gold, said = predictions.T.astype(np.int64)
        return accuracy_and_f1(gold, said)


def class_weights(settings: Settings | None, names: Sequence[str], store: TokenStore) -> Tensor | None:
    """float32 (labels,), or None where all count alike. Raises ConfigError for a label that is not there."""
    wanted = settings and settings.class_weights
    if not wanted:
        return None
    if wanted == "balanced":  # as scikit-learn's: examples / (labels * examples of the label)
        assert store.labels is not None
        counts = np.bincount(store.labels[store.offsets[:-1]], minlength=len(names))
        return torch.tensor(counts.sum() / (len(names) * np.maximum(counts, 1)), dtype=torch.float32)
    if unknown := sorted(set(wanted) - set(names)):
        raise ConfigError(
            f"classification.class_weights names {unknown[0]!r}, and the labels are {', '.join(names[:8])}"
            f"{did_you_mean(unknown[0], list(names))}",
            param="classification.class_weights",
        )
    return torch.tensor([wanted.get(name, 1.0) for name in names], dtype=torch.float32)
