"""Learn new text while predicting earlier text as before: two kinds of rows in one step.

New rows teach by cross-entropy. Kept rows, of earlier texts, hold the model to what it predicted there before the
run: KL(before || now), as in learning without forgetting (arXiv 1606.09282). A whole distribution per token says far
more than the one token that a replayed text holds, so few kept rows do. Steps and learning rate are those of the
new rows alone: kept rows are beside them, not between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everlearn.errors import ConfigError
from train.data.packing import Batch, Packer
from train.data.store import open_store
from train.models.load import load_causal_lm
from train.objectives.causal import CausalLM, next_token_validation, predicted
from train.objectives.linear_loss import LossAndGrad, cross_entropies, linear_loss
from train.objectives.logits import Logits, before_logits, logits_at
from train.objectives.objective import RunInputs, Training
from train.recipe import Smoothing


class WithKept:
    """Numbered batches: rows of ``new``, then in step with them rows of ``kept``, once through it per epoch.

    ``kept_rows`` of a batch, int64 (1,), says how many of its last rows these are.
    """

    def __init__(self, new: Packer, kept: Packer) -> None:
        self.new, self.kept = new, kept
        self.rows = new.rows

    def batch(self, step: int, micro_batch: int, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
        """A pure function of its arguments; over all ranks, the same rows whatever their number."""
        first = (step * ranks + rank) * micro_batch
        start, stop = (number * self.kept.rows // self.new.rows for number in (first, first + micro_batch))
        parts: list[Batch] = [self.new.batch(first // micro_batch, micro_batch)]
        parts += [self.kept.batch(number, 1) for number in range(start, stop)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}  # type: ignore[literal-required]
        return joined | {"kept_rows": np.array([stop - start])}


class Keeping:
    """Cross-entropy of the new rows plus ``weight`` times the kept rows' divergence from ``before``.

    Both are sums; the number of targets is that of the new rows.
    """

    @classmethod
    def for_run(cls, run: RunInputs) -> Training:
        """By the recipe's ``keep``; without any kept rows, what :class:`CausalLM` makes of the run."""
        keep = run.recipe.keep
        if keep is None or run.base is None:
            raise ConfigError("objective: keep needs the key keep, and a base", param="keep")
        store = open_store(keep.store)
        if not len(store):
            return CausalLM.for_run(run)
        kept = Packer(store, run.recipe.sequence_tokens, run.recipe.seed)
        weight = keep.weight * run.packer.targets / max(1, kept.targets)  # of a sum beside the new text's sum
        objective = cls(load_causal_lm(run.base).to(run.device), weight, run.recipe.smoothing)
        return Training(objective, WithKept(run.packer, kept), next_token_validation(run.held_out))

    def __init__(self, before: nn.Module, weight: float, smoothing: Smoothing | None = None) -> None:
        self.before = before.eval().requires_grad_(False)
        self.weight = weight
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels, kept_rows = batch["labels"], int(batch["kept_rows"])
        following, places = predicted(labels)
        first_kept = (len(labels) - kept_rows) * labels.shape[1]
        new, kept = places[places < first_kept], places[places >= first_kept]
        now = before_logits(model, batch)
        loss = linear_loss(*now, new, cross_entropies(following[new], self.smoothing))
        if len(kept):
            with torch.no_grad():
                old = {key: batch[key][-kept_rows:] for key in ("input_ids", "position_ids")}
                theirs = logits_at(self.before, old, kept - first_kept)
            loss = loss + self.weight * linear_loss(*now, kept, divergences(theirs))
        return loss, torch.tensor(len(new), dtype=torch.float32, device=loss.device)


def divergences(theirs: Logits) -> LossAndGrad:
    """KL(theirs || now), in nats."""
    return lambda chunk, now: divergence(torch.log_softmax(theirs(chunk), -1), torch.log_softmax(now, -1))


def divergence(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """KL(before || now) of log-probabilities (n, vocab), summed, in nats; and its gradient with respect to the logits of now."""
    probabilities = before.exp()
    return (probabilities * (before - now)).sum(), now.exp().sub_(probabilities)
