"""AdamW over a model's parameters, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.recipe import Optimizer, Schedule


def adamw(model: nn.Module, options: Optimizer) -> torch.optim.AdamW:
    """AdamW whose decay spares vectors (norms and biases), its state made at once so that it can be loaded."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def lr_at(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The learning rate of ``step`` (from 0) of ``steps``."""
    warmup = round(steps * schedule.warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * cosine)
