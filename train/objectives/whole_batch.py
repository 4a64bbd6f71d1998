"""Features of a whole step's batch, for objectives that compare its examples with each other.

What is compared must not depend on how many examples fit into memory or on how many ranks share the step: features are
made in chunks that are computed again in the backward pass, and are gathered over the ranks with their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(encode: Callable[..., Tensor], inputs: Sequence[Tensor], size: int) -> Tensor:
    """``encode`` of ``size`` rows of ``inputs`` at a time, (rows, …): only one chunk's activations are in memory."""
    parts = zip(*(each.split(size) for each in inputs), strict=True)
    if not torch.is_grad_enabled() or len(inputs[0]) <= size:
        return torch.cat([encode(*part) for part in parts])
    made: list[Any] = [checkpoint(encode, *part, use_reentrant=False) for part in parts]
    return torch.cat(made)


def gathered(rows: Tensor) -> Tensor:
    """Those of all ranks, (ranks * rows, …), in their order; as many on each. Gradients go back to the rank of each row."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows.contiguous()) if rows.requires_grad else _gather(rows.contiguous())  # type: ignore[return-value]


def first_row(rows: int) -> int:
    """The place of this rank's first row among those gathered."""
    return dist.get_rank() * rows if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """What every rank's loss says of a row is summed on the way back: a rank has the losses of its own rows alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        count = len(total) // dist.get_world_size()
        return total[first_row(count) : first_row(count) + count]


def _gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)
