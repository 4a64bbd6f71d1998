"""A model's logits before they are computed: hidden states and output layer, so that a loss may take them in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
