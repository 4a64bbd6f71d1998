"""Check that a model can learn from packed rows, on two short documents, before any work.

Several documents share a row, kept apart by position ids that start anew, and the loss is computed from the last
hidden states. Models with recurrent layers, with alibi, or without position ids mix the documents up; those with
attention in both directions see what they should predict. Neither shows in a loss that falls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everlearn.errors import Unsupported
from train.objectives.logits import before_logits

LENGTHS = (9, 6)
TOLERANCE = 1e-4
"""Of the largest logit. Rounding differs by about 1e-6; documents that leak were seen to differ by 4e-3 and more."""


@torch.no_grad()
def refuse_unfit(model: Any) -> None:
    """Raises Unsupported, by the architecture's name, for a causal language model (float32) that packing would spoil."""
    training = model.training
    model.eval()
    try:
        fault = _fault(model)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        fault = f"does not take packed documents ({first})"
    finally:
        model.train(training)
    if fault:
        raise Unsupported(
            f"{type(model).__name__} {fault}: it cannot be trained here. It can still be imported, compressed and "
            "served where its architecture allows (docs/supported-architectures.md)",
            param="base",
        )


def _fault(model: Any) -> str | None:
    first, second = LENGTHS
    rows = model.get_input_embeddings().num_embeddings
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, rows - 1), rows, (1, first + second), generator=drawn)  # (1, both)
    alone = [_logits(model, ids[:, :first]), _logits(model, ids[:, first:])]  # each (document, vocab)
    scale = max(float(logits.abs().max()) for logits in alone) or 1.0
    if not all(bool(logits.isfinite().all()) for logits in alone):
        return "has logits that are no numbers"

    def differ(one: Tensor, other: Tensor) -> bool:
        return not float((one - other).abs().max()) <= TOLERANCE * scale

    if differ(_logits(model, ids[:, : first - 3]), alone[0][: first - 3]):
        return "sees the tokens that follow"
    positions = torch.cat([torch.arange(first), torch.arange(second)])[None]
    hidden, weight, bias = before_logits(model, {"input_ids": ids, "position_ids": positions})
    packed = hidden if weight is None else nn.functional.linear(hidden, weight, bias)
    if differ(packed[:first], alone[0]):
        return "has other logits than its last hidden states and its output layer give"
    if differ(packed[first:], alone[1]):
        return "lets documents that share a row see each other"
    return None


def _logits(model: Any, ids: Tensor) -> Tensor:
    """float32 (document, vocab), as transformers computes them."""
    return model(input_ids=ids, use_cache=False).logits[0].float()
