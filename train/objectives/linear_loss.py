"""The loss of an output layer's logits, of which only few rows are in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train.recipe import Smoothing

CHUNK_BYTES = 64 * 1024**2
"""Logits in memory at once."""

LossAndGrad = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Maps a slice of the positions and their logits, float32 (n, vocab), to the sum of their losses, float32 (), and its
gradient with respect to the logits, (n, vocab)."""


def cross_entropies(targets: Tensor, smoothing: Smoothing | None = None) -> LossAndGrad:
    """Of ``targets``, int64 (positions,).

    ``smoothing``: of a target, the share ``labels`` is spread over the whole vocabulary, and ``z`` times the square of
    the logarithm of the softmax's denominator is added to its loss.
    """
    spread, z = smoothing or Smoothing()

    def smoothed(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        wanted, vocab = targets[chunk], logits.shape[-1]
        norm = torch.logsumexp(logits, -1, keepdim=True)  # (n, 1)
        log_probs = logits - norm
        each = torch.arange(len(wanted), device=wanted.device)
        loss = -(1 - spread) * log_probs[each, wanted].sum() - spread / vocab * log_probs.sum()
        loss = loss + z * (norm**2).sum()
        grad = log_probs.exp_().mul_(1 + 2 * z * norm).sub_(spread / vocab)
        grad[each, wanted] -= 1 - spread
        return loss, grad

    def loss_and_grad(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        wanted = targets[chunk]
        log_probs = torch.log_softmax(logits, -1)  # (n, vocab)
        each = torch.arange(len(wanted), device=wanted.device)
        loss = -log_probs[each, wanted].sum()
        grad = log_probs.exp_()  # d loss / d logits = softmax - one hot
        grad[each, wanted] -= 1
        return loss, grad

    return smoothed if spread or z else loss_and_grad


def linear_loss(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Tensor, loss_and_grad: LossAndGrad
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
        return _LinearLoss.apply(hidden, weight, bias, rows, loss_and_grad, dtype)  # type: ignore[return-value]
    total = torch.zeros((), device=hidden.device)
    with torch.autocast(device, enabled=False):
        used = None if weight is None else weight.to(dtype)
        for chunk in chunks(len(rows), (hidden.shape[-1] if weight is None else len(weight))):
            total += loss_and_grad(chunk, _logits(hidden[rows[chunk]].to(dtype), used, bias))[0]
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
        loss_and_grad: LossAndGrad,
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
                loss, grad = loss_and_grad(chunk, _logits(chosen, used, bias))
                total += loss
                if grad_bias is not None:
                    grad_bias += grad.sum(0).to(grad_bias.dtype)
                grad = grad.to(dtype)
                if grad_hidden is not None:
                    back = grad if used is None else grad @ used
                    grad_hidden[rows[chunk]] = back.to(grad_hidden.dtype)
                if grad_weight is not None and dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.t(), chosen)
                elif grad_weight is not None:
                    grad_weight += grad.t() @ chosen
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if grad is None else grad.mul_(outer[0]) for grad in ctx.saved_tensors]
        return (*scaled, None, None, None)
