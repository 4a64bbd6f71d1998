"""A labelled example before it is tokens."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

LabelledKind = Literal[
    "classification",
    "token-classification",
    "question-answering",
    "pair-scoring",
    "embedding",
    "seq2seq",
    "contrastive",
]
"""By the name of the objective that learns from them."""

TEXTS: dict[LabelledKind, tuple[str, ...]] = {
    "classification": ("text", "text_pair"),
    "token-classification": ("tokens",),
    "question-answering": ("question", "context"),
    "pair-scoring": ("query", "document"),
    "embedding": ("anchor", "positive", "negative"),
    "seq2seq": ("source", "target"),
    "contrastive": ("text",),
}
"""What of each kind a model reads, in its order."""

SHARED: dict[LabelledKind, str] = {
    "question-answering": "context",
    "pair-scoring": "query",
    "contrastive": "image",
}
"""What many examples have in common: all that share it are on one side of the split, or it would be known there."""


@dataclass(frozen=True)
class Labelled:
    """``record``: the example's own keys and values, checked by ``train.data.labelled.forms``; of a picture its sha256.
    ``image``: the picture's bytes as they were read, and once it is cleaned, its pixels (uint8). The rest as in
    ``train.data.examples.Text``."""

    kind: LabelledKind
    record: dict[str, Any]
    source: str = field(default="", compare=False)
    form: str = field(default="", compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    image: bytes | None = field(default=None, compare=False, repr=False)
    marks: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """What a model reads; a word list as one text."""
        values = (self.record.get(key) for key in TEXTS[self.kind])
        return tuple(" ".join(value) if isinstance(value, list) else value for value in values if value)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels: one, or one for each word; of a question, whether it has an answer."""
        if self.kind == "classification":
            return (self.record["label"],)
        if self.kind == "token-classification":
            return tuple(self.record["tags"])
        if self.kind == "question-answering":
            return ("answerable" if self.record["answers"]["text"] else "unanswerable",)
        return ()

    @property
    def sha256(self) -> str:
        """In Unicode's NFC: the first half is a digest of all that it says, the second, by which the split goes,
        of what it shares with others (:data:`SHARED`), or of all as well."""
        shared = SHARED.get(self.kind)
        whole = _digest(self.record)
        return whole[:32] + (_digest(self.record[shared])[32:] if shared else whole[32:])

    def with_texts(self, change: Callable[[str], str]) -> Labelled:
        """Each text as ``change`` makes it; words that have a tag each, and contexts that answers point into, stay."""
        if self.kind in ("token-classification", "question-answering"):
            return self
        changed = {key: change(self.record[key]) for key in TEXTS[self.kind] if self.record.get(key)}
        return replace(self, record={**self.record, **changed})


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(unicodedata.normalize("NFC", canonical).encode()).hexdigest()
