"""Extractive question answering: a long text is read in windows that overlap, and the likeliest span is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from serve.engines.context_bound import ContextLengthExceeded
from serve.engines.onnx.encoders.model import Encoded, EncoderModel, Rows
from serve.engines.tokenizer import whole

OVERLAP_TOKENS = 128
"""Of a window with the next one, at most half of it: transformers' doc_stride."""
MAX_WINDOWS = 64
MAX_ANSWER_TOKENS = 15
"""transformers' default."""


@dataclass(frozen=True)
class Windows:
    """A context's windows, each behind the question. ``inside``: bool (tokens,), which of a window's are the context's."""

    context: str
    texts: list[Encoded]
    inside: list[NDArray[np.bool_]]


def windows_of(encoder: EncoderModel, question: str, context: str) -> Windows:
    """Raises InvalidInput where either is empty, ContextLengthExceeded where they are too long."""
    question, context = whole(question), whole(context)
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            raise InvalidInput(f"inputs.{name} is empty", param=f"inputs.{name}")
    encoder.bound.probe(question, "inputs.question")
    tokenizer = encoder.tokenizer
    asked = tokenizer.encode(question, add_special_tokens=False)
    room = encoder.context - len(asked.ids) - tokenizer.num_special_tokens_to_add(True)
    if room < encoder.context // 4:
        raise ContextLengthExceeded(
            f"this model reads {encoder.context} tokens at once; the question alone has {len(asked.ids)}",
            param="inputs.question",
        )
    overlap = min(OVERLAP_TOKENS, room // 2)
    read = tokenizer.encode(context, add_special_tokens=False)
    windows = -(-max(1, len(read.ids) - overlap) // (room - overlap))
    if windows > MAX_WINDOWS:
        raise ContextLengthExceeded(
            f"the context has {len(read.ids)} tokens, which are {windows} windows; at most {MAX_WINDOWS} are read",
            param="inputs.context",
        )
    read.truncate(room, stride=overlap)
    texts: list[Encoded] = []
    inside: list[NDArray[np.bool_]] = []
    for part in (read, *read.overflowing):
        both = tokenizer.post_process(asked, part)
        texts.append(Encoded(both.ids, both.type_ids, both.offsets))
        inside.append(np.array([one == 1 for one in both.sequence_ids]))
    return Windows(context, texts, inside)


def answers(
    windows: Windows, computed: Sequence[Rows], top_k: int, longest: int | None = None
) -> list[dict[str, Any]]:
    """The ``top_k`` likeliest spans, each place once; ``longest``: tokens of one. Scores: products of probabilities."""
    found: dict[tuple[int, int], float] = {}
    for encoded, inside, (starts, ends) in zip(windows.texts, windows.inside, computed, strict=True):
        first, last = (probabilities(one, inside) for one in (starts, ends))
        spans = np.triu(np.outer(first, last))
        spans -= np.triu(
            spans, longest or MAX_ANSWER_TOKENS
        )  # (tokens, tokens): where it starts, where it ends
        for flat in np.argsort(-spans, axis=None, kind="stable")[:top_k]:
            start, end = np.unravel_index(flat, spans.shape)
            place = encoded.offsets[start][0], encoded.offsets[end][1]
            if inside[start] and inside[end]:
                found[place] = max(found.get(place, 0.0), float(spans[start, end]))
    best = sorted(found.items(), key=lambda one: -one[1])[:top_k]
    return [
        {"answer": windows.context[start:end], "score": score, "start": start, "end": end}
        for (start, end), score in best
    ]


def probabilities(logits: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each token of a window to be the place; none outside the context. Both (tokens,)."""
    powers = np.where(inside, np.exp(logits.astype(np.float64) - logits[inside].max()), 0.0)
    return powers / powers.sum()
