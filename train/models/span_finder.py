"""Where a token classifier finds what it was taught to find, in texts of any length."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.models.windowed import WindowedModel, batches, inputs_of_rows, labels_of
from train.objectives.labelled import inputs_of

OVERLAP = 64
"""Tokens that two neighbouring windows of a long text have in common: each is believed on its own half of them."""
FIRST_CJK = "\u2e80"
"""From here on, writing has no spaces between words."""
WITHOUT_SPACES = (("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"))
"""Nor has that of Thai and Lao, Burmese, and Khmer."""
JOINS = "-'\u2019"


class Place(NamedTuple):
    """Of a token in its text: characters ``start`` to ``end``."""

    start: int
    end: int
    begins: bool


class SpanFinder:
    """A model of task ``token_classify``, and some of its labels without ``B-`` and ``I-``. Raises InvalidInput where it has
    none of them."""

    def __init__(self, model_dir: Path, labels: Sequence[str], threshold: float) -> None:
        kinds = [_scheme_and_kind(label) for label in labels_of(model_dir)]
        found = [number for number, (_, kind) in enumerate(kinds) if kind in labels]
        if not found:
            there = dict.fromkeys(kind for _, kind in kinds)
            raise InvalidInput(
                f"data.personal.names: {model_dir.name} has no label {' or '.join(map(repr, labels))}; it has "
                f"{', '.join(there) or 'none: it is no token classifier'}",
                param="data.personal.names.labels",
            )
        self._wanted, self._threshold = found, threshold
        self._begins = [number for number in found if kinds[number][0] == "B"]
        self._read = WindowedModel(model_dir, "token_classify")

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Of each text, where its spans are, in order: whole words, neighbours as one."""
        encoded = self._read.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        windows = sorted(self._windows([one.ids for one in encoded]), key=lambda window: len(window[1]))
        inside = [np.zeros((len(one.ids), 2), dtype=bool) for one in encoded]
        before = len(self._read.around[0])
        for batch in batches(windows):
            for ((number, at, low, high), _), said in zip(
                batch, self._judged([ids for _, ids in batch]), strict=True
            ):
                inside[number][at + low : at + high] = said[before + low : before + high]
        return [
            list(_joined(text, _places(text, one.offsets, found)))
            for text, one, found in zip(texts, encoded, inside, strict=True)
        ]

    def _windows(self, texts: Sequence[list[int]]) -> Iterator[tuple[tuple[int, int, int, int], list[int]]]:
        """The number of the text, where the window begins, and from where to where in it the window is believed."""
        room = self._read.room
        step = max(1, room - OVERLAP)
        for number, ids in enumerate(texts):
            begins = range(0, max(1, len(ids) - (room - step)), step) if ids else ()
            for at in begins:
                part = ids[at : at + room]
                last = at + room >= len(ids)
                low = (room - step) // 2 if at else 0
                high = len(part) if last else len(part) - (room - step) + (room - step) // 2
                yield (number, at, low, high), self._read.window(0, part)[1]

    @torch.no_grad()
    def _judged(self, rows: Sequence[list[int]]) -> NDArray[np.bool_]:
        """(rows, seq, 2): whether each token is inside a span, and whether it begins one."""
        model = self._read.model
        logits = model(**inputs_of(model, inputs_of_rows(rows))).logits.float()  # (rows, seq, labels)
        found = torch.softmax(logits, -1)
        inside = found[..., self._wanted].sum(-1) >= self._threshold
        begins = torch.isin(logits.argmax(-1), torch.tensor(self._begins, dtype=torch.long))
        return torch.stack([inside, inside & begins], -1).numpy()


def _scheme_and_kind(label: str) -> tuple[str, str]:
    scheme, _, kind = label.partition("-")
    return (scheme, kind) if kind and scheme in ("B", "I", "E", "S", "L", "U") else ("", label)


def _places(text: str, offsets: Sequence[tuple[int, int]], found: NDArray[np.bool_]) -> Iterator[Place]:
    """Of words whose first token is inside a span: of the others, models are mostly taught nothing."""
    for (start, end), (inside, begins) in zip(offsets, found.tolist(), strict=True):
        if inside and end > start:
            while start < end and text[start].isspace():  # some tokens begin with the space before a word
                start += 1
            if start < end and not _inside_word(text, start):
                yield Place(start, end, begins)


def _joined(text: str, places: Iterator[Place]) -> Iterator[tuple[int, int]]:
    """Words with nothing but a space, a hyphen, an apostrophe or a full stop between them are one span, unless the second
    begins another."""
    span: tuple[int, int] | None = None
    for place in places:
        start, end = place.start, place.end
        while end < len(text) and _inside_word(text, end):
            end += 1
        if span and (start < span[1] or (start == span[1] and not place.begins)):
            span = (span[0], max(end, span[1]))
        elif (
            span
            and not place.begins
            and len(gap := text[span[1] : start]) <= 2
            and not gap.strip(" -.\u2019'")
        ):
            span = (span[0], end)
        else:
            if span:
                yield span
            span = (start, end)
    if span:
        yield span


def _inside_word(text: str, at: int) -> bool:
    """Whether the character at ``at`` goes on with a word, in writing that has spaces between words. A hyphen or an
    apostrophe between letters does, as in O'Brien."""
    if not 0 < at < len(text):
        return False
    if text[at] in JOINS:
        return at + 1 < len(text) and _is_of_word(text[at - 1]) and _is_of_word(text[at + 1])
    before = text[at - 2 : at - 1] if text[at - 1] in JOINS else text[at - 1]
    return bool(before) and _is_of_word(before) and _is_of_word(text[at])


def _is_of_word(character: str) -> bool:
    if character >= FIRST_CJK or any(first <= character <= last for first, last in WITHOUT_SPACES):
        return False
    return character.isalnum() or unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"
