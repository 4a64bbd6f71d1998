"""Encoder-decoders: say the target, token by token, from the source and what was said (T5, arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.data.packing import IGNORED
from train.models.packed_inputs import encode_and_decode
from train.objectives.linear_loss import Smoothing, cross_entropies, linear_loss


class ToTarget:
    """Cross-entropy of the target's tokens, in nats, summed over them; several pairs share a row and see nothing of
    each other."""

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        targets = batch["labels"].flatten()
        places = (targets != IGNORED).nonzero().squeeze(1)
        losses = cross_entropies(targets[places], self.smoothing)
        loss = linear_loss(*before_target_logits(model, batch), places, losses)
        return loss, torch.tensor(len(places), dtype=torch.float32, device=loss.device)


def before_target_logits(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``train.objectives.logits.before_logits``: hidden states (rows * target, hidden), weight and bias."""
    hidden, output = encode_and_decode(model, batch).flatten(0, 1), model.get_output_embeddings()
    if getattr(model.config, "scale_decoder_outputs", False):
        hidden = hidden * model.config.d_model**-0.5
    return hidden, output.weight, output.bias
