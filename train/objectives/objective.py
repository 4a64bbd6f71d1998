"""What an objective is: it maps (model, batch) to a sum of losses over targets, and to the number of targets.

The loop divides by the targets of the whole step, so that accumulation and ranks give the gradient of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """batch: int64 tensors (rows, seq) of ``train.data.packing``. Returns float32 sums: (loss, targets)."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...
