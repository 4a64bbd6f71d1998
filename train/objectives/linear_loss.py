"""What is minimised. An objective maps (model, batch) to a sum over targets and their number.

The loop divides by the targets of the whole step, so that accumulation and ranks give the gradient of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100
CHUNK_BYTES = 64 * 1024**2
"""Logits held at once."""

# A model that changes its logits after the output layer computes its loss from whole logits.
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logits_scaling",
    "logit_scale",
    "logits_mup_width_multiplier",
    "lm_head_multiplier",
)


Logits = Callable[[slice], Tensor]
"""Logits, float32 (n, vocab), at a slice of the positions that were asked for."""

Slopes = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Of a slice of the positions and their logits, float32 (n, vocab): the sum of their losses, and its derivative by
the logits, (n, vocab)."""


class Objective(Protocol):
    """batch: int64 tensors (rows, seq) of ``train.data.packing``. Returns float32 sums: (loss, targets)."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class CausalLM:
    """Cross-entropy of the next token, in nats, summed over the targets.

    Packed documents do not see each other: their position ids start anew, and transformers masks by that.
    """

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets, rows = predicted(batch["labels"])
        loss = linear_loss(*before_logits(model, batch), rows, cross_entropies(targets[rows]))
        return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device)


def predicted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """What each position predicts, and the positions that predict a target.

    labels: int64 (rows, seq), not shifted. Returns targets int64 (rows * seq,) and places int64 (n,).
    """
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    targets = following.flatten()
    return targets, (targets != IGNORED).nonzero().squeeze(1)


def head_of(model: Any) -> tuple[nn.Module, nn.Linear] | None:
    """Decoder and output layer, where the logits are no more than one applied to the other.

    None where the model changes logits afterwards, or where it has more between the two (BERT's heads transform).
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or decoder is None or decoder is model or decoder is head:
        return None
    others = (child for child in model.children() if child is not head and decoder not in child.modules())
    return None if any(True for child in others for _ in child.parameters()) else (decoder, head)


def vocabulary(model: Any) -> int:
    """How many logits a position has."""
    return model.config.get_text_config().vocab_size


def before_logits(
    model: nn.Module, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states (rows * seq, hidden) with the output layer's weight and bias.

    Where logits are more than one applied to the other: whole logits (rows * seq, vocab), and None for both.
    Documents packed in one row do not see each other: position ids start anew.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "use_cache": False,
    }
    parts = head_of(model)
    if parts is None:
        return model(**inputs).logits.flatten(0, 1), None, None
    decoder, head = parts
    return decoder(**inputs).last_hidden_state.flatten(0, 1), head.weight, head.bias


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], rows: Tensor) -> Logits:
    """Logits float32 (n, vocab) at a slice of ``rows``, int64 (n,) positions of the flattened batch.

    As precise, wherever they are asked for, as autocast said here.
    """
    hidden, weight, bias = before_logits(model, batch)
    hidden, device = hidden[rows], hidden.device.type
    if weight is None:
        return lambda chunk: hidden[chunk].float()
    precision = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def at(chunk: slice) -> Tensor:
        with torch.autocast(device, *precision):
            return nn.functional.linear(hidden[chunk], weight, bias).float()

    return at


def cross_entropies(targets: Tensor) -> Slopes:
    """Of ``targets``, int64 (positions,)."""

    def slopes(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        wanted = targets[chunk]
        log_probs = torch.log_softmax(logits, -1)  # (n, vocab)
        each = torch.arange(len(wanted), device=wanted.device)
        loss = -log_probs[each, wanted].sum()
        slope = log_probs.exp_()  # d loss / d logits = softmax - one hot
        slope[each, wanted] -= 1
        return loss, slope

    return slopes


def linear_loss(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Tensor, slopes: Slopes
) -> Tensor:
    """Sum of the losses of ``hidden[rows] @ weight.T + bias``, few rows of logits at a time.

    hidden: (m, hidden); weight: (vocab, hidden); bias: (vocab,); rows: int64 (n,). Without a weight, ``hidden`` are
    the logits. Returns float32 ().
    """
    device = hidden.device.type
    dtype = hidden.dtype if weight is None else weight.dtype
    if weight is not None and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if torch.is_grad_enabled():
        return _LinearLoss.apply(hidden, weight, bias, rows, slopes, dtype)  # type: ignore[return-value]
    total = torch.zeros((), device=hidden.device)
    with torch.autocast(device, enabled=False):
        used = None if weight is None else weight.to(dtype)
        for chunk in chunks(len(rows), (hidden.shape[-1] if weight is None else len(weight))):
            total += slopes(chunk, _logits(hidden[rows[chunk]].to(dtype), used, bias))[0]
    return total


def chunks(rows: int, vocab: int) -> list[slice]:
    """Slices of ``rows`` positions whose logits, float32, are held at once."""
    size = max(32, CHUNK_BYTES // (4 * vocab))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    logits = (hidden if weight is None else hidden @ weight.t()).float()  # (n, vocab)
    return logits if bias is None else logits + bias.float()


class _LinearLoss(torch.autograd.Function):
    """Gradients are made while the logits are there, so none are kept or computed twice.

    As in Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rows: Tensor,
        slopes: Slopes,
        dtype: torch.dtype,
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight) if of_weight and weight is not None else None
        grad_bias = torch.zeros_like(bias) if of_bias and bias is not None else None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            used = None if weight is None else weight.to(dtype)
            for chunk in chunks(len(rows), hidden.shape[-1] if weight is None else len(weight)):
                chosen = hidden[rows[chunk]].to(dtype)
                loss, slope = slopes(chunk, _logits(chosen, used, bias))
                total += loss
                if grad_bias is not None:
                    grad_bias += slope.sum(0).to(grad_bias.dtype)
                slope = slope.to(dtype)
                if grad_hidden is not None:
                    back = slope if used is None else slope @ used
                    grad_hidden[rows[chunk]] = back.to(grad_hidden.dtype)
                if grad_weight is not None and dtype == grad_weight.dtype:
                    grad_weight.addmm_(slope.t(), chosen)
                elif grad_weight is not None:
                    grad_weight += slope.t() @ chosen
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if grad is None else grad.mul_(outer[0]) for grad in ctx.saved_tensors]
        return (*scaled, None, None, None)
