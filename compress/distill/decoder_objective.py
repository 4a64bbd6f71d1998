"""A smaller student taught by a larger model's predictions (arXiv 1503.02531): its next-token distributions are
soft targets, which say of every token how likely each other one would have been."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.prune.layers import layers_of
from train.objectives.causal import predicted
from train.objectives.keep import divergence
from train.objectives.linear_loss import cross_entropies, linear_loss
from train.objectives.logits import before_logits, logits_at
from train.objectives.table import ObjectiveSpec, register_objective

Divergence = Literal["forward", "reverse", "jensen-shannon"]


def divergence_and_grad(teacher: Tensor, student: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Summed over the rows of log-probabilities (n, vocab), in nats; and its derivative by the student's logits.

    ``forward``: KL(teacher || student), which covers all that the teacher finds likely. ``reverse``: KL(student ||
    teacher), which leaves out what the student cannot say (arXiv 2306.08543). ``jensen-shannon``: the mean of both
    sides' KL from their mixture (arXiv 2306.13649), bounded by log 2.
    """
    if kind == "forward":
        return divergence(teacher, student)
    ours = student.exp()
    if kind == "reverse":
        further = student - teacher
        each = (ours * further).sum(-1, keepdim=True)
        return each.sum(), ours.mul_(further.sub_(each))
    mixture = torch.logaddexp(teacher, student) - math.log(2)
    further = student - mixture
    each = (ours * further).sum(-1, keepdim=True)
    both = each.sum() + (teacher.exp() * (teacher - mixture)).sum()
    return both / 2, ours.mul_(further.sub_(each)).div_(2)


def with_text(
    soft: tuple[Tensor, Tensor], temperature: float, weight: float, logits: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """``weight`` of what the teacher says, loss and derivative by logits over ``temperature``, the rest of the text.

    The teacher's part counts times the temperature's square, so that its gradient keeps its size whatever that is.
    logits: (n, vocab); targets: int64 (n,). Ids beyond those of ``soft`` are the text's alone.
    """
    hard_loss, grad = cross_entropies(targets)(slice(None), logits)
    soft_loss, soft_grad = soft
    grad.mul_(1 - weight)[:, : soft_grad.shape[-1]].add_(soft_grad, alpha=weight * temperature)
    return weight * temperature**2 * soft_loss + (1 - weight) * hard_loss, grad


def counterparts(kept: Sequence[int] | None, student: int, teacher: int) -> list[tuple[int, int]]:
    """For each of the student's layers, counted from 0, that of the teacher whose output it should give.

    Where the student has the teacher's layers ``kept``: the last one before the next that was kept, so that what
    lies behind a gap gets what it is used to. Otherwise the layers at the same share of the depth.
    """
    if kept is None:
        return [(at, round((at + 1) * teacher / student) - 1) for at in range(student)]
    return [(at, following - 1) for at, following in enumerate([*kept[1:], teacher])]


@contextmanager
def outputs_of(model: Any, which: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What these layers give out while it lasts, by number: (rows, seq, hidden)."""
    given: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            given[at] = output[0] if isinstance(output, tuple) else output

        return hook

    layers = layers_of(model)
    hooks = [layers[at].register_forward_hook(keep(at)) for at in which]
    try:
        yield given
    finally:
        for one in hooks:
            one.remove()


class HiddenStates:
    """How far the student's layers are from their ``counterparts``: ``weight`` of the squared distance over the
    target's square.

    Where the widths differ, a linear map from the student's to the teacher's is learnt beside it (FitNets, arXiv
    1412.6550): it is a part of the student until :meth:`remove`.
    """

    def __init__(
        self, teacher: Any, student: Any, pairs: Sequence[tuple[int, int]], weight: float = 1.0
    ) -> None:
        self.pairs = list(pairs)
        self.weight = weight
        narrow, wide = student.config.hidden_size, teacher.config.hidden_size
        if narrow != wide:
            student.hidden_maps = nn.ModuleList(nn.Linear(narrow, wide, bias=False) for _ in self.pairs)

    @staticmethod
    def remove(student: Any) -> None:
        """Takes the maps off, if there are any."""
        if hasattr(student, "hidden_maps"):
            del student.hidden_maps

    def distance(
        self, student: Any, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor], rows: Tensor
    ) -> Tensor:
        """Summed over ``rows`` of the flattened batch, ``weight`` of the mean of all pairs."""
        maps = getattr(student, "hidden_maps", None)
        loss = torch.zeros((), device=rows.device)
        for number, (at, counterpart) in enumerate(self.pairs):
            mine, wanted = ours[at].flatten(0, 1)[rows], theirs[counterpart].flatten(0, 1)[rows].float()
            mapped = (maps[number](mine) if maps is not None else mine).float()
            loss = loss + ((mapped - wanted).square().sum(-1) / wanted.square().sum(-1)).sum()
        return self.weight * loss / len(self.pairs)


class Distillation:
    """``weight`` of the divergence from the teacher, the rest cross-entropy of the text; an objective of the loop.

    The divergence (see :func:`divergence_and_grad`) is that of distributions softened by ``temperature`` T, times T squared, so
    that its gradient keeps its size whatever T is. What the ``states`` say is added. Where one of the two has more
    ids, they are padding beyond the tokenizer's: the divergence is over those that both have.
    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float,
        weight: float,
        divergence: Divergence = "forward",
        states: HiddenStates | None = None,
    ) -> None:
        self.kind: Divergence = divergence
        self.states = states
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        following, rows = predicted(batch["labels"])
        targets = following[rows]
        pairs = self.states.pairs if self.states else []
        with outputs_of(self.teacher, [pair[1] for pair in pairs]) as their_states, torch.no_grad():
            theirs = logits_at(self.teacher, batch, rows)
        with outputs_of(model, [pair[0] for pair in pairs]) as our_states:
            now = before_logits(model, batch)
        loss = linear_loss(
            *now, rows, lambda chunk, logits: self.loss_and_grad(theirs(chunk), logits, targets[chunk])
        )
        if self.states:
            loss = loss + self.states.distance(model, our_states, their_states, rows)
        return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device)

    def loss_and_grad(self, soft: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses, and its derivative by logits (n, vocab). soft: the teacher's (n, vocab)."""
        both = min(soft.shape[-1], logits.shape[-1])
        teacher, student = (torch.log_softmax(one[:, :both] / self.temperature, -1) for one in (soft, logits))
        found = divergence_and_grad(teacher, student, self.kind)
        return with_text(found, self.temperature, self.weight, logits, targets)


register_objective(
    ObjectiveSpec(
        "distillation",
        "compress.distill.decoder_objective:Distillation",
        "divergence from a teacher's predictions, and cross-entropy of the next token",
        "decoders with a teacher of the same tokenizer",
        command="everlearn distill",
    )
)
