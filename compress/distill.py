"""A smaller student taught by a larger model's predictions (arXiv 1503.02531): its next-token distributions are
soft targets, which say of every token how likely each other one would have been."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.objectives import logits_at, predicted

CHUNK_BYTES = 64 * 1024**2
"""Logits held at once, of teacher and student each."""

Divergence = Literal["forward", "reverse", "jensen-shannon"]


def apart(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Summed over the rows of log-probabilities (n, vocab), in nats.

    ``forward``: KL(teacher || student), which covers all that the teacher finds likely. ``reverse``: KL(student ||
    teacher), which leaves out what the student cannot say (arXiv 2306.08543). ``jensen-shannon``: the mean of both
    sides' KL from their mixture (arXiv 2306.13649), bounded by log 2.
    """
    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    mixture = torch.logaddexp(teacher, student) - math.log(2)
    return (kl(teacher, mixture) + kl(student, mixture)) / 2


def kl(of: Tensor, by: Tensor) -> Tensor:
    """KL(of || by), summed over rows of log-probabilities (n, vocab)."""
    return nn.functional.kl_div(by, of, reduction="sum", log_target=True)


class Distillation:
    """``weight`` of the divergence from the teacher, the rest cross-entropy of the text; an objective of the loop.

    The divergence (see :func:`apart`) is that of distributions softened by ``temperature`` T, times T squared, so
    that its gradient keeps its size whatever T is.
    """

    def __init__(
        self, teacher: nn.Module, temperature: float, weight: float, divergence: Divergence = "forward"
    ) -> None:
        self.kind: Divergence = divergence
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        following, rows = predicted(labels)
        targets = following[rows]
        with torch.no_grad():
            theirs = logits_at(self.teacher, batch, rows)
        ours = logits_at(model, batch, rows)
        size = max(32, CHUNK_BYTES // (4 * model.config.get_text_config().vocab_size))
        loss = torch.zeros((), device=labels.device)
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            with torch.no_grad():
                soft = theirs(chunk)  # (size, vocab)
            part = checkpoint(self.divergence, ours, chunk, soft, targets[chunk], use_reentrant=False)
            assert isinstance(part, Tensor)
            loss = loss + part
        return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device)

    def divergence(
        self, ours: Callable[[slice], Tensor], chunk: slice, soft: Tensor, targets: Tensor
    ) -> Tensor:
        """Sum over the chunk; soft: the teacher's logits (n, vocab); targets: int64 (n,)."""
        logits, temperature = ours(chunk), self.temperature
        soft_loss = apart(
            torch.log_softmax(soft / temperature, -1), torch.log_softmax(logits / temperature, -1), self.kind
        )
        hard = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return self.weight * temperature**2 * soft_loss + (1 - self.weight) * hard
