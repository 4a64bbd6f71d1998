"""A bundle as a torch module of tensors in, tensor out: what the runtimes' converters trace, and what they must equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everlearn.importing.loaded import refuse_differences

Feeds = Mapping[str, np.ndarray]
"""A graph's inputs by name, int64 (1, seq) each."""
Run = Callable[[Feeds], np.ndarray]
"""Gives logits, float32 (1, seq, vocabulary), or an encoder's embedding, float32 (1, dim)."""


class Scores(nn.Module):
    """A decoder's logits for each token of a text, without a cache of keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = ["input_ids"]

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: int64 (batch, seq); returns float32 (batch, seq, vocabulary).

        The mask is given, since transformers otherwise looks in the positions for texts packed into one row.
        """
        mask = torch.ones_like(input_ids)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


@dataclass(frozen=True)
class Source:
    """``module``: float32, with the names of its ``inputs``; ``context``: tokens of a text at most."""

    module: Any
    directory: Path
    task: str
    vocabulary: int
    context: int

    @property
    def inputs(self) -> list[str]:
        return self.module.inputs

    @property
    def output(self) -> str:
        return "logits" if self.task == "generate" else "embedding"

    def example(self, length: int) -> tuple[Tensor, ...]:
        """Inputs to trace with, int64 (1, length) each."""
        return tuple(torch.from_numpy(each) for each in self.feeds(length, length).values())

    def feeds(self, length: int, padded: int) -> dict[str, np.ndarray]:
        """A text of ``length`` tokens from all over the vocabulary, for encoders padded to ``padded`` on the right."""
        ids = (np.arange(length, dtype=np.int64) * 7919 + 11) % self.vocabulary
        if self.task == "generate":
            return {"input_ids": ids.reshape(1, -1)}  # [None] gives a stride of 0, which ExecuTorch refuses
        row = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: np.pad(row[name], (0, padded - length)).reshape(1, -1) for name in self.inputs}

    @torch.no_grad()
    def run(self, feeds: Feeds) -> np.ndarray:
        """A :data:`Run`, in torch."""
        return self.module(*(torch.from_numpy(feeds[name]) for name in self.inputs)).numpy()


def load_source(directory: Path, task: str, context: int | None) -> Source:
    """The bundle in float32. Raises InvalidInput naming a tensor that is missing, misshapen or left over."""
    config = json.loads((directory / "config.json").read_bytes())
    limit = int(config.get("max_position_embeddings") or 2**31)
    if task == "embed":
        from compress.sentence_encoder import drop_pooler, load_encoder, max_length

        module: Any = load_encoder(directory)
        drop_pooler(module)
        limit = max_length(directory)
    else:
        module = Scores(load_decoder(directory)).eval()
    vocabulary = int(config["vocab_size"])
    return Source(module, directory, task, vocabulary, min(context or limit, limit))


def load_decoder(directory: Path) -> Any:
    """In float32; attention is spelt out where its scores are capped, which torch's fused one would leave out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    model, info = AutoModelForCausalLM.from_pretrained(
        directory,
        attn_implementation="eager" if capped else None,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name
    )
    refuse_differences(info)
    return model.eval()
