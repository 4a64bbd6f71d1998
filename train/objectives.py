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
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


Logits = Callable[[slice], Tensor]
"""Logits, float32 (n, vocab), at a slice of the positions that were asked for."""


class Objective(Protocol):
    """batch: int64 tensors (rows, seq) of ``train.data.packing``. Returns float32 sums: (loss, targets)."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class CausalLM:
    """Cross-entropy of the next token, in nats, summed over the targets.

    Packed documents do not see each other: their position ids start anew, and transformers masks by that.
    """

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets, rows = predicted(batch["labels"])
        parts = head_of(model)
        if parts is None:
            return _from_logits(model, batch, rows, targets)
        decoder, head = parts
        hidden = decoder(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state  # (rows, seq, hidden)
        loss = linear_cross_entropy(hidden.flatten(0, 1), head.weight, head.bias, rows, targets[rows])
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
    """Decoder and output layer, where the logits are no more than one applied to the other."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    plain = isinstance(head, nn.Linear) and decoder is not model and decoder is not None
    return (decoder, head) if plain else None


def _from_logits(
    model: nn.Module, batch: Mapping[str, Tensor], rows: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits  # (rows, seq, vocab)
    chosen = logits.flatten(0, 1)[rows].float()  # (n, vocab)
    loss = nn.functional.cross_entropy(chosen, targets[rows], reduction="sum")
    return loss, torch.tensor(len(rows), dtype=torch.float32, device=loss.device)


def vocabulary(model: Any) -> int:
    """How many logits a position has."""
    return model.config.get_text_config().vocab_size


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], rows: Tensor) -> Logits:
    """Logits float32 (n, vocab) at a slice of ``rows``, int64 (n,) positions of the flattened batch.

    Documents packed in one row do not see each other: position ids start anew.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "use_cache": False,
    }
    parts = head_of(model)
    if parts is None:
        logits = model(**inputs).logits.flatten(0, 1)[rows]
        return lambda chunk: logits[chunk].float()
    decoder, head = parts
    hidden = decoder(**inputs).last_hidden_state.flatten(0, 1)[rows]  # (n, hidden)
    return lambda chunk: head(hidden[chunk]).float()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, targets: Tensor
) -> Tensor:
    """Sum of cross-entropies of ``hidden[rows] @ weight.T + bias``, few rows of logits at a time.

    hidden: (m, hidden); weight: (vocab, hidden); bias: (vocab,); rows, targets: int64 (n,). Returns float32 ().
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, bias, rows, targets, dtype)  # type: ignore[return-value]
    total = torch.zeros((), device=hidden.device)
    with torch.autocast(device, enabled=False):
        weight = weight.to(dtype)
        for chunk in chunks(len(rows), len(weight)):
            logits = _logits(hidden[rows[chunk]].to(dtype), weight, bias)
            total += nn.functional.cross_entropy(logits, targets[chunk], reduction="sum")
    return total


def chunks(rows: int, vocab: int) -> list[slice]:
    """Slices of ``rows`` positions whose logits, float32, are held at once."""
    size = max(32, CHUNK_BYTES // (4 * vocab))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (hidden @ weight.t()).float()  # (n, vocab)
    return logits if bias is None else logits + bias.float()


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made while the logits are there, so none are kept or computed twice.

    As in Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight) if of_weight else None
        grad_bias = torch.zeros_like(bias) if of_bias and bias is not None else None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(dtype)
            for chunk in chunks(len(rows), len(weight)):
                chosen, wanted = hidden[rows[chunk]].to(dtype), targets[chunk]
                log_probs = torch.log_softmax(_logits(chosen, used, bias), -1)  # (n, vocab)
                each = torch.arange(len(wanted), device=wanted.device)
                total -= log_probs[each, wanted].sum()
                slope = log_probs.exp_()  # d loss / d logits = softmax - one hot
                slope[each, wanted] -= 1
                if grad_bias is not None:
                    grad_bias += slope.sum(0).to(grad_bias.dtype)
                slope = slope.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows[chunk]] = (slope @ used).to(grad_hidden.dtype)
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
