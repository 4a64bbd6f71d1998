"""Keep experts busy alike without a loss for it (arXiv 2408.15664, as DeepSeek-V3 does).

A router chooses experts by score plus bias, and weighs them by score alone. After each step the bias of an expert that
got fewer tokens than the mean of its layer rises by a fixed rate, and that of one with more falls. Transformers has
the bias (``e_score_correction_bias``) and leaves it as it is. It is a buffer of the model, so checkpoints and bundles hold it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.parallel.group import Group

BIAS = "e_score_correction_bias"


class ExpertBalance:
    """Counts the tokens of each router of ``model`` in training. ``rate``: of one step."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.routers = [
            module for module in model.modules() if hasattr(module, BIAS) and hasattr(module, "top_k")
        ]
        self.counts: list[Tensor | None] = [None] * len(self.routers)
        for number, router in enumerate(self.routers):
            router.register_forward_hook(self._counting(number))

    def step(self, group: Group) -> None:
        """Moves the biases by what all ranks have seen since the last step."""
        for number, router in enumerate(self.routers):
            counted, bias = self.counts[number], getattr(router, BIAS)
            if counted is None:
                continue
            total = torch.tensor(group.sum(list(counted)), dtype=torch.float64)
            bias += self.rate * torch.sign(total.mean() - total).to(bias)
            self.counts[number] = None

    def _counting(self, number: int) -> Any:
        def count(router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            if not router.training:
                return
            chosen = torch.bincount(output[2].detach().flatten(), minlength=len(getattr(router, BIAS)))
            before = self.counts[number]
            self.counts[number] = chosen if before is None else before + chosen

        return count
