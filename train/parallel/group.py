"""One process or several: the model is wrapped once, and the loop stays as it is.

DDP (arXiv 2006.15704) keeps a whole model on every rank; FSDP2 (arXiv 2304.11277) a share of it. Both are
torch's own, over gloo on CPU and nccl on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

Kind = Literal["none", "ddp", "fsdp2"]
TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other; rank 0 may be hashing a checkpoint."""


class LossModule(nn.Module):
    """Wraps model and loss in one forward, so that DDP and FSDP see every use of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Callable[..., Any], batch: Any) -> Any:
        return objective(self.model, batch)


def own_device() -> torch.device:
    """The GPU that torchrun gave this process, else the first; the CPU where there is none."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """This process among those that train together. The default is one process alone."""

    kind: Kind = "none"
    rank: int = 0
    ranks: int = 1
    device: torch.device = field(default_factory=own_device)

    @property
    def is_first(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module to call with (objective, batch)."""
        if self.kind != "fsdp2":  # which moves a layer at a time, and keeps a share of it
            model.to(self.device)
        loss_module = LossModule(model)
        if self.kind == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(loss_module, gradient_as_bucket_view=True)
        if self.kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            for block in repeated_blocks(model):
                fully_shard(block)
            fully_shard(loss_module)
        return loss_module

    @contextmanager
    def accumulating(self, loss_module: Any, last: bool) -> Generator[None]:
        """Gradients travel between the ranks with the last micro-batch of a step only."""
        if self.kind == "fsdp2":
            loss_module.set_requires_gradient_sync(last)
            loss_module.set_is_last_backward(last)
        if self.kind == "ddp" and not last:
            with loss_module.no_sync():
                yield
        else:
            yield

    def sum(self, values: Iterable[Tensor]) -> list[float]:
        """Sums of scalars over all ranks, in float64."""
        stacked = torch.stack([value.detach().double() for value in values])
        if self.ranks > 1:
            dist.all_reduce(stacked)
        return stacked.tolist()

    def gather(self, parts: Sequence[Tensor]) -> NDArray[np.float64]:
        """The rows that all ranks have, float64 (n, columns); how many each has may differ."""
        mine = torch.cat(list(parts)).cpu().double().numpy()
        if self.ranks == 1:
            return mine
        every: list[Any] = [None] * self.ranks
        dist.all_gather_object(every, mine)
        return np.concatenate(every)

    def barrier(self) -> None:
        if self.ranks > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def joined(kind: Kind) -> Generator[Group]:
    """The group this process belongs to, as torchrun's variables say."""
    if kind == "none":
        yield Group()
        return
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Group(kind, dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the longest list of modules: what FSDP gathers one at a time."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all ranks where it is sharded; every rank must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
