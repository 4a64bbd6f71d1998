"""What an encoder is given of packed rows, so that documents that share a row do not see each other.

Encoders know nothing of positions that start anew, as decoders do: they are given the mask itself, (rows, 1, seq, seq),
zero where a token may look and a large negative number elsewhere. As numbers, which are added, it holds for every
kind of attention; true and false leak where attention is spelt out, and in T5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everlearn.bundles.text_positions import first_position

HIDDEN = -1e9
"""Added to a score, leaves nothing of it in float32 and bfloat16."""


def between(queries: Tensor, keys: Tensor) -> Tensor:
    """float32 (rows, 1, queries, keys): zero where the documents are the same. Both int64 (rows, …)."""
    same = queries[:, None, :, None] == keys[:, None, None, :]
    return torch.zeros(same.shape, device=same.device).masked_fill_(~same, HIDDEN)


def encoder_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """``input_ids``, ``position_ids`` and ``attention_mask`` for an encoder of one stack (BERT's kind)."""
    config, documents = model.config, batch["document_ids"]
    mask: Any = between(documents, documents)
    if getattr(config, "layer_types", None):  # ModernBERT: some layers look a short way only
        at = torch.arange(documents.shape[1], device=documents.device)
        far = (at[:, None] - at[None]).abs() > config.sliding_window
        mask = {"full_attention": mask, "sliding_attention": mask.masked_fill(far, HIDDEN)}
    first = first_position(config.model_type, config.pad_token_id)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": mask,
        "position_ids": batch["position_ids"] + first,
    }


def encode_and_decode(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Last hidden states of an encoder-decoder's decoder, (rows, target, hidden).

    ``document_ids`` and ``decoder_document_ids`` of the batch, int64 (rows, source) and (rows, target), are the same for
    what belongs together. The model itself gives its decoder one mask for all places, so the two stacks are run here.
    """
    source, target = batch["document_ids"], batch["decoder_document_ids"]
    read = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=between(source, source))
    places = target.shape[1]
    later = torch.ones(places, places, dtype=torch.bool, device=target.device).triu_(1)
    return model.get_decoder()(
        input_ids=batch["decoder_input_ids"],
        attention_mask=between(target, target).masked_fill_(later, HIDDEN),
        encoder_hidden_states=read.last_hidden_state,
        encoder_attention_mask=between(target, source),
        use_cache=False,
    ).last_hidden_state
