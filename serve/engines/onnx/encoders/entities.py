"""From the labels of tokens to the entities of a text, as Hugging Face's token classification answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engines.onnx.encoders.model import Encoded


def entities(
    text: str,
    encoded: Encoded,
    probabilities: NDArray[np.float32],
    labels: Sequence[str],
    ignored: Iterable[str],
    *,
    simple: bool,
) -> list[dict[str, Any]]:
    """Those of ``text`` that are none of ``ignored``; places in characters. probabilities: (tokens, labels).

    ``simple``: neighbouring tokens of one kind are one entity, which a B- begins anew; else each token is one.
    """
    skipped = set(ignored)
    found: list[dict[str, Any]] = []
    for at, (start, end) in enumerate(encoded.offsets):
        if start == end:  # a special token
            continue
        best = int(probabilities[at].argmax())
        found.append(
            {
                "entity": labels[best],
                "score": float(probabilities[at, best]),
                "index": at,
                "word": text[start:end],
                "start": start,
                "end": end,
            }
        )
    if not simple:
        return [one for one in found if one["entity"] not in skipped]
    return [one for one in joined(text, found) if one["entity_group"] not in skipped]


def joined(text: str, tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one kind, whose score is their mean."""
    number = 0
    numbered: list[tuple[int, dict[str, Any]]] = []
    before = None
    for token in tokens:
        begins = token["entity"].startswith("B-")
        kind = kind_of(token["entity"])
        number += begins or kind != before
        before = kind
        numbered.append((number, token))
    groups = [[token for _, token in group] for _, group in groupby(numbered, key=lambda one: one[0])]
    return [
        {
            "entity_group": kind_of(group[0]["entity"]),
            "score": float(np.mean([one["score"] for one in group])),
            "word": text[group[0]["start"] : group[-1]["end"]],
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def kind_of(label: str) -> str:
    """``PER`` of ``B-PER`` and ``I-PER``."""
    return label[2:] if label.startswith(("B-", "I-")) else label
