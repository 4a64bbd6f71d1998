"""The interface of an objective: (model, batch) to a sum of losses over targets, and the number of targets.

The loop divides by the targets of the whole step, so that accumulation and ranks give the gradient of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from train.data.packing import Packer
from train.recipe import TrainRecipe


class Objective(Protocol):
    """batch: tensors of a batch, by the keys that ``train.objectives.table`` says. Returns float32 () sums: loss, targets."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class Batches(Protocol):
    """Numbered batches of rows, and how many rows an epoch has; ``train.data.packing.Packer`` is one."""

    rows: int

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> Any: ...


@dataclass(frozen=True)
class HeldOut:
    """What validation measures: rows of ``batches``, as many as ``options.validation`` allows, by ``objective``."""

    batches: Batches
    objective: Objective


@dataclass(frozen=True)
class RunInputs:
    """What a run has when it makes its objective.

    ``packer``: rows to learn from. ``held_out``: rows to measure on. ``base``: the folder of the model it starts from.
    ``device``: where the model will be.
    """

    recipe: TrainRecipe
    packer: Packer
    held_out: Packer | None
    base: Path | None
    device: torch.device


@dataclass(frozen=True)
class Training:
    """What the class method ``for_run(run: RunInputs)`` of an objective returns: all that the loop needs to know of it."""

    objective: Objective
    batches: Batches
    validation: HeldOut | None


def objective_for(run: RunInputs) -> Training:
    """What the recipe asks to minimize, over which batches, and how it is validated."""
    return run.recipe.objective_spec.load().for_run(run)
