"""A sentence encoder in PyTorch: pooled, at unit length; and how near another one's embeddings are to its."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everlearn.bundles.text_positions import context_of_encoder
from everlearn.errors import Unsupported
from everlearn.importing.loaded import refuse_differences
from train.data.tokenize import marks
from train.evaluate.held_out_text import held_out_text

# Short, long and unlike each other: embeddings are compared on them.
PROBE_WORDS = (4, 16, 64, 120)
TEXT_TOKENS = (16, 32, 64, 128)
"""Of the texts that say what layers do."""

Embed = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From an encoder's inputs, int64 (batch, seq) each, to unit vectors, float32 (batch, dim)."""


class Encoder(nn.Module):
    """``body`` with pooling and normalisation. ``inputs`` and ``outputs``: their names, in order; of these the free axes.

    ``rounded``: how the names of the layers begin that may keep fewer bits.
    """

    def __init__(self, body: Any, pooling: str) -> None:
        super().__init__()
        self.body, self.pooling = body, pooling
        takes_types = "token_type_ids" in inspect.signature(body.forward).parameters
        self.inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types else [])]
        self.outputs: Mapping[str, Mapping[int, str]] = {"sentence_embedding": {0: "batch"}}
        self.rounded = ""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Tensors: int64 (batch, seq) each; returns float32 (batch, dim), unit length."""
        given = dict(zip(self.inputs, tensors, strict=True))
        return self.pooled(self.body(**given).last_hidden_state, given["attention_mask"])

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: (batch, seq, dim); mask: (batch, seq), 0 in the padding; returns (batch, dim), unit length."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(hidden.dtype)  # (batch, seq, 1)
            one = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        else:
            one = hidden[:, 0]
        return nn.functional.normalize(one, dim=-1)

    @torch.inference_mode()
    def embed(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """An :data:`Embed`."""
        return self(*(torch.from_numpy(feeds[name]) for name in self.inputs)).numpy()


def load_encoder(model_dir: Path) -> Encoder:
    """Float32, on the CPU. Raises Unsupported for another pooling than mean or cls.

    Raises InvalidInput naming a tensor of the body that is missing, misshapen or left over; a head may be there.
    """
    from transformers import AutoModel

    body, info = AutoModel.from_pretrained(
        model_dir,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name
    )
    refuse_differences(info, encoder=body)
    return Encoder(body, pooling_mode(model_dir)).eval()


def drop_pooler(encoder: Encoder) -> None:
    """Drops the one of a first token: no embedding comes through it."""
    if hasattr(encoder.body, "pooler"):
        encoder.body.pooler = None


def save_encoder(encoder: Encoder, dtype: torch.dtype, directory: Path) -> None:
    """Weights and config.json, without the pooler. Last use of it."""
    drop_pooler(encoder)
    encoder.body.to(dtype).save_pretrained(directory)


def pooling_mode(model_dir: Path) -> str:
    """``mean`` or ``cls``, as sentence-transformers' 1_Pooling says. Raises Unsupported for other modes."""
    file = model_dir / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    modes = json.loads(file.read_text())
    chosen = {name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or not chosen <= known.keys():
        raise Unsupported(f"the encoder pools by {sorted(chosen)}; mean and cls are understood")
    return known[chosen.pop()]


def max_length(model_dir: Path) -> int:
    """Tokens that a text is cut to."""
    config = json.loads((model_dir / "config.json").read_text())
    limit = context_of_encoder(config)
    if (model_dir / "sentence_bert_config.json").is_file():
        said = json.loads((model_dir / "sentence_bert_config.json").read_text()).get("max_seq_length")
        limit = min(limit, int(said or limit))
    return limit


def truncating_tokenizer(model_dir: Path) -> Any:
    """The tokenizer, which cuts each text where the encoder ends and pads a batch to its longest text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.enable_truncation(max_length(model_dir))
    tokenizer.enable_padding()
    return tokenizer


def inputs_of(tokenizer: Any, texts: list[Any]) -> dict[str, np.ndarray]:
    """int64 (texts, seq) each; a text may be a pair of them."""
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        "token_type_ids": np.array([one.type_ids for one in encoded], dtype=np.int64),
    }


def texts_of(tokens: np.ndarray, model_dir: Path) -> list[Tensor]:
    """Tokens, int64 (n,), as texts with their marks, short and long by turns: int64 (texts, length), one batch per length.

    An encoder reads a question otherwise than a passage, and has its own numbers for each position.
    """
    before, after = marks(model_dir)
    longest = max_length(model_dir)
    lengths = [min(length, longest) for length in TEXT_TOKENS]
    texts: dict[int, list[list[int]]] = {length: [] for length in lengths}
    at = 0
    for length in cycle(lengths):
        size = length - len(before) - len(after)
        if at + size > len(tokens):
            break
        texts[length].append([*before, *tokens[at : at + size].tolist(), *after])
        at += size
    return [torch.tensor(some) for some in texts.values() if some]


def whole_texts(ids: Tensor) -> dict[str, np.ndarray]:
    """The inputs of texts without padding; ids: int64 (texts, seq)."""
    feeds = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: one.numpy() for name, one in feeds.items()}


def probe_texts() -> list[str]:
    """Pieces of the held-out text, of several lengths."""
    words = held_out_text().text.split()
    return [" ".join(words[start : start + count]) for count in PROBE_WORDS for start in range(0, 4000, 500)]


def embedding_similarity(ours: Embed, theirs: Embed, model_dir: Path) -> dict[str, Any]:
    """Cosine similarity of both embeddings of each of the held-out text's pieces; padded batches, as an engine sends them."""
    tokenizer, texts = truncating_tokenizer(model_dir), probe_texts()
    cosines: list[float] = []
    for start in range(0, len(texts), 8):
        feeds = inputs_of(tokenizer, texts[start : start + 8])
        cosines += (ours(feeds) * theirs(feeds)).sum(-1).tolist()
    return {
        "cosine_mean": round(float(np.mean(cosines)), 5),
        "cosine_min": round(float(np.min(cosines)), 5),
        "texts": len(texts),
    }
