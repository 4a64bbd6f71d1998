"""Pair scoring: how well a document answers a query, read together by one model (a cross-encoder)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.evaluate.labels import area_under_curve, rank_correlation
from train.objectives.labelled import (
    example_numbers,
    first_labels,
    held_out,
    held_rows,
    rows_of,
    sequence_logits,
)
from train.objectives.objective import RunInputs, Training


class PairScoring:
    """Binary cross-entropy of the score's sigmoid with the label from 0 to 1, in nats, summed over the pairs."""

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        return Training(cls(), rows_of(run), held_out(held_rows(run), cls(), PairJudge()))

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _losses(model, batch)[:2]


class PairJudge:
    """The area under the ROC curve where labels are 0 and 1, Spearman's rank correlation where there are others."""

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss, count, scores, labels, rows = _losses(model, batch)
        return (
            loss,
            count,
            torch.stack([example_numbers(batch)[rows].double(), labels.double(), scores.double()], 1),
        )

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        _, labels, scores = predictions.T
        if set(np.unique(labels)) <= {0.0, 1.0}:
            return {"auc": area_under_curve(labels > 0.5, scores)}
        return {"spearman": rank_correlation(labels, scores)}


def _losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum, the number of pairs, their scores and labels, float32 (n,), and their rows."""
    bits, rows = first_labels(batch)
    labels = bits.to(torch.int32).view(torch.float32)
    scores = sequence_logits(model, batch)[rows, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device), scores, labels, rows
