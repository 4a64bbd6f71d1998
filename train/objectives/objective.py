"""The interface of an objective: (model, batch) to a sum of losses over targets, and the number of targets.

The loop divides by the targets of the whole step, so that accumulation and ranks give the gradient of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.data.mixing.mixed_rows import Mixture
from train.data.packing import Packer
from train.data.store import TokenStore
from train.recipe import TrainRecipe


class Objective(Protocol):
    """batch: tensors of a batch, by the keys that ``train.objectives.table`` says. Returns float32 () sums: loss, targets."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class Judge(Protocol):
    """A task's own measure, beside the loss: what the model says of a batch, and what that is worth over all of them."""

    def predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """As an objective, and what the model says of each target: float64 (n, columns)."""
        ...

    def score(self, predictions: NDArray[np.float64]) -> dict[str, float]:
        """Of all batches and ranks, (n, columns) in any order: figures by name."""
        ...


class Batches(Protocol):
    """Numbered batches of rows, and how many rows an epoch has; ``train.data.packing.Packer`` is one."""

    rows: int

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> Any: ...


@dataclass(frozen=True)
class HeldOut:
    """What validation measures: rows of ``batches``, as many as ``options.validation`` allows, by ``objective``.

    ``judge``: the task's own measure, where it has one. ``row_tokens``: of a row in the mean, where it is not full.
    """

    batches: Batches
    objective: Objective
    judge: Judge | None = None
    row_tokens: float | None = None


@dataclass(frozen=True)
class RunInputs:
    """What a run has when it makes its objective.

    ``packer``: rows to learn from. ``held_out``: rows to measure on. ``base``: the folder of the model it starts from.
    ``device``: where the model will be. ``tokenizer_dir``: the tokenizer's folder. ``store`` and ``held_store``: the
    examples that these rows are made of. ``mixture``: whose turn a row is, of data in components.
    """

    recipe: TrainRecipe
    packer: Packer
    held_out: Packer | None
    base: Path | None
    device: torch.device
    tokenizer_dir: Path
    store: TokenStore | None = None
    held_store: TokenStore | None = None
    mixture: Mixture | None = None


@dataclass(frozen=True)
class Training:
    """What the class method ``for_run(run: RunInputs)`` of an objective returns: all that the loop needs to know of it.

    ``whole_steps``: whether it compares rows with each other, and must see a rank's rows of a step at once.
    ``metrics``: what is known before the first step, for the bundle's metrics.
    """

    objective: Objective
    batches: Batches
    validation: HeldOut | None
    whole_steps: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


def objective_for(run: RunInputs) -> Training:
    """What the recipe asks to minimize, over which batches, and how it is validated."""
    return run.recipe.objective_spec.load().for_run(run)
