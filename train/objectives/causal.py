"""Causal language modeling: predict the next token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.objectives.linear_loss import cross_entropies, linear_loss
from train.objectives.logits import before_logits
from train.objectives.objective import Batches, HeldOut, RunInputs, Training
from train.recipe import Smoothing

IGNORED = -100
"""The label of a position that predicts nothing."""


class CausalLM:
    """Cross-entropy of the next token, in nats, summed over the targets.

    Packed documents do not see each other: their position ids start anew, and transformers masks by that.
    """

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        return Training(cls(run.recipe.smoothing), run.packer, next_token_validation(run.held_out))

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets, rows = predicted(batch["labels"])
        loss = linear_loss(*before_logits(model, batch), rows, cross_entropies(targets[rows], self.smoothing))
        return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device)


def next_token_validation(held_out: Batches | None) -> HeldOut | None:
    """Measures the loss of the next token, where there are rows to measure on."""
    return HeldOut(held_out, CausalLM()) if held_out else None


def predicted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """What each position predicts, and the positions that predict a target.

    labels: int64 (rows, seq), not shifted. Returns targets int64 (rows * seq,) and places int64 (n,).
    """
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    targets = following.flatten()
    return targets, (targets != IGNORED).nonzero().squeeze(1)
