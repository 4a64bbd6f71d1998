"""Learning the new while predicting the old as before: two kinds of rows in one step.

New rows teach by cross-entropy. Kept rows, of earlier texts, hold the model to what it predicted there before the
run: KL(before || now), as in learning without forgetting (arXiv 1606.09282). A whole distribution a token says far
more than the one token that a replayed text holds, so few kept rows do. Steps and learning rate are those of the
new rows alone: kept rows are beside them, not between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.data.packing import Batch, Packer
from train.objectives import CHUNK_BYTES, Logits, head_of, linear_cross_entropy, logits_at, predicted


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

    def __init__(self, before: nn.Module, weight: float) -> None:
        self.before = before.eval().requires_grad_(False)
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels, kept_rows = batch["labels"], int(batch["kept_rows"])
        following, places = predicted(labels)
        first_kept = (len(labels) - kept_rows) * labels.shape[1]
        new, kept = places[places < first_kept], places[places >= first_kept]
        loss, ours = self._both(model, batch, new, kept, following[new])
        if len(kept):
            with torch.no_grad():
                old = {key: batch[key][-kept_rows:] for key in ("input_ids", "position_ids")}
                theirs = logits_at(self.before, old, kept - first_kept)
            loss = loss + self.weight * _divergence(ours, theirs, len(kept), model)
        return loss, torch.tensor(len(new), dtype=torch.float32, device=loss.device)

    def _both(
        self, model: nn.Module, batch: Mapping[str, Tensor], new: Tensor, kept: Tensor, targets: Tensor
    ) -> tuple[Tensor, Logits]:
        """The new rows' loss, and logits of the kept ones, from one pass through the model."""
        parts = head_of(model)
        if parts is None:
            logits = _whole_logits(model, batch)
            return nn.functional.cross_entropy(logits[new].float(), targets, reduction="sum"), (
                lambda chunk: logits[kept[chunk]].float()
            )
        decoder, head = parts
        hidden = _hidden(decoder, batch)
        loss = linear_cross_entropy(hidden, head.weight, head.bias, new, targets)
        return loss, lambda chunk: head(hidden[kept[chunk]]).float()


def _divergence(ours: Logits, theirs: Logits, count: int, model: Any) -> Tensor:
    """KL(theirs || ours) in nats, summed over ``count`` positions, few rows of logits at a time."""

    def part(chunk: slice) -> Tensor:
        with torch.no_grad():
            before = torch.log_softmax(theirs(chunk), -1)
        now = torch.log_softmax(ours(chunk), -1)
        return nn.functional.kl_div(now, before, reduction="sum", log_target=True)

    size = max(32, CHUNK_BYTES // (4 * model.config.get_text_config().vocab_size))
    chunks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return torch.stack([checkpoint(part, chunk, use_reentrant=False) for chunk in chunks]).sum()  # type: ignore[misc]


def _hidden(decoder: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """(rows * seq, hidden). Documents packed in one row do not see each other: position ids start anew."""
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    return decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)


def _whole_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """(rows * seq, vocab), of a model whose logits are more than its output layer applied to its hidden states."""
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    return model(**inputs, use_cache=False).logits.flatten(0, 1)
