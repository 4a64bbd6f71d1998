"""Check that a model can learn from packed rows, on two short documents, before any work.

Several documents share a row: decoders keep them apart by position ids that start anew, encoders by the masks of
``train.models.packed_inputs``. Decoders with recurrent layers, with alibi, or without position ids mix them up; with
attention in both directions they see what they should predict. Neither shows in a loss that falls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everlearn.bundles.tasks import Task
from everlearn.errors import Unsupported
from train.models.packed_inputs import encoder_inputs
from train.objectives.logits import before_logits

LENGTHS = (9, 6)
TOLERANCE = 1e-4
"""Of the largest logit. Rounding differs by about 1e-6; documents that leak were seen to differ by 4e-3 and more."""


@torch.no_grad()
def refuse_unfit(model: Any, task: Task = "generate") -> None:
    """Raises Unsupported, by the architecture's name, for a model (float32) of ``task`` that packing would spoil.

    Of tasks with labels nothing is asked: their rows are a text each.
    """
    check = {"generate": _fault_of_decoder, "fill_mask": _fault_of_encoder, "text2text": _fault_of_pair}.get(
        task
    )
    if check is None:
        return
    training = model.training
    model.eval()
    try:
        fault = check(model)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
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


def _fault_of_decoder(model: Any) -> str | None:
    first, ids = LENGTHS[0], _drawn(model)
    alone = [_logits(model, ids[:, :first]), _logits(model, ids[:, first:])]  # each (document, vocab)
    scale = _scale(alone)
    if scale is None:
        return "has logits that are no numbers"
    if _differ(_logits(model, ids[:, : first - 3]), alone[0][: first - 3], scale):
        return "sees the tokens that follow"
    batch = {"input_ids": ids, "position_ids": _batch(ids)["position_ids"]}
    hidden, weight, bias = before_logits(model, batch)
    packed = hidden if weight is None else nn.functional.linear(hidden, weight, bias)
    if _differ(packed[:first], alone[0], scale):
        return "has other logits than its last hidden states and its output layer give"
    return _leak(packed[first:], alone[1], scale)


def _fault_of_encoder(model: Any) -> str | None:
    from train.objectives.masked import before_masked_logits

    first, ids = LENGTHS[0], _drawn(model)
    alone = [model(input_ids=part).logits[0].float() for part in (ids[:, :first], ids[:, first:])]
    scale = _scale(alone)
    if scale is None:
        return "has logits that are no numbers"
    places = torch.arange(ids.shape[1])
    hidden, weight, bias = before_masked_logits(model, _batch(ids), places)
    packed = hidden if weight is None else nn.functional.linear(hidden, weight, bias)
    whole = model(**encoder_inputs(model, _batch(ids))).logits[0].float()
    if _differ(packed, whole, scale):
        return "has other logits than its last hidden states and its output layer give"
    return _leak(packed, torch.cat(alone), scale)


def _fault_of_pair(model: Any) -> str | None:
    from train.objectives.seq2seq import before_target_logits

    first, ids = LENGTHS[0], _drawn(model)
    parts = (ids[:, :first], ids[:, first:])
    alone = [model(input_ids=part, decoder_input_ids=part.flip(1)).logits[0].float() for part in parts]
    scale = _scale(alone)
    if scale is None:
        return "has logits that are no numbers"
    batch = _batch(ids)
    batch |= {
        "decoder_input_ids": torch.cat([part.flip(1) for part in parts], 1),
        "decoder_document_ids": batch["document_ids"],
    }
    hidden, weight, bias = before_target_logits(model, batch)
    packed = nn.functional.linear(hidden, weight, bias)
    return _leak(packed, torch.cat(alone), scale)


def _drawn(model: Any) -> Tensor:
    """Two documents of any tokens, int64 (1, both)."""
    rows = model.get_input_embeddings().num_embeddings
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(min(3, rows - 1), rows, (1, sum(LENGTHS)), generator=drawn)


def _batch(ids: Tensor) -> dict[str, Tensor]:
    spans = [torch.arange(length) for length in LENGTHS]
    return {
        "input_ids": ids,
        "position_ids": torch.cat(spans)[None],
        "document_ids": torch.cat([torch.full_like(span, n) for n, span in enumerate(spans)])[None],
    }


def _scale(alone: list[Tensor]) -> float | None:
    """The largest logit; None where some are no numbers."""
    if not all(bool(logits.isfinite().all()) for logits in alone):
        return None
    return max(float(logits.abs().max()) for logits in alone) or 1.0


def _differ(one: Tensor, other: Tensor, scale: float) -> bool:
    return not float((one - other).abs().max()) <= TOLERANCE * scale


def _leak(packed: Tensor, alone: Tensor, scale: float) -> str | None:
    return "lets documents that share a row see each other" if _differ(packed, alone, scale) else None


def _logits(model: Any, ids: Tensor) -> Tensor:
    """float32 (document, vocab), as transformers computes them."""
    return model(input_ids=ids, use_cache=False).logits[0].float()
