"""Which labels there are, how often on each side of the split, and what people must know of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from everlearn.suggest import did_you_mean
from train.data.labelled.example import Labelled
from train.data.reading.forms import fault

NAMED = ("classification", "token-classification")
"""The kinds whose labels a model has a number for."""
MAX_LABELS = 10_000
MAX_SHOWN = 5


@dataclass
class Labels:
    """Of the documents that are kept. ``names``: of those to learn from, by number. ``train`` and ``held``: how often
    each is there. ``in_held``: bool (documents,), the split, changed where a side had lacked a label."""

    names: tuple[str, ...]
    train: Counter[str]
    held: Counter[str]
    in_held: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list[str])

    def lacks(self, example: object) -> bool:
        """Whether the example has a label that none to learn from has."""
        return (
            isinstance(example, Labelled)
            and bool(self.names)
            and not {*self.names}.issuperset(example.labels)
        )

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By name, as the data card says it."""
        return {
            name: {"train": self.train[name], "held": self.held[name]}
            for name in self.names or sorted(self.train | self.held)
        }


def find_labels(
    documents: Iterator[Labelled],
    kept: NDArray[np.bool_],
    in_held: NDArray[np.bool_],
    place: NDArray[np.float64],
    *,
    given_held: bool,
) -> Labels:
    """``kept``, ``in_held``, ``place``: of each document, whether it is used, on which side, and where its hash falls,
    from 0 to 1. Unless the held-out side was given, it gets an example of every label that two texts have, and the
    other side one of every label.

    Raises InvalidInput for a label of a file to measure with that is nowhere to learn from, by file and line; for one
    label in all, and for more than any model tells apart.
    """
    seen = _read(documents, kept, in_held)
    if not seen.is_named:
        train, held = seen.counts(in_held)
        return Labels((), train, held, in_held)
    if not given_held:
        in_held = _both_sides(seen.having, in_held, place, seen.one_each)
    train, held = seen.counts(in_held)
    names = tuple(sorted(train, key=_order))
    if given_held:
        _refuse_unknown(seen, in_held, names)
    if len(names) == 1:
        raise InvalidInput(
            f'every example to learn from has the label "{names[0]}": two labels at least are needed',
            param="training_file",
        )
    notes = [*_told_missing(names, held, bool(in_held[kept].any())), *_told_contradictions(seen)]
    return Labels(names, train, held, in_held, notes)


@dataclass
class _Seen:
    """``having``: the documents of each label; ``times``: of a document, how often it has each of its labels."""

    is_named: bool
    one_each: bool
    having: dict[str, list[int]]
    times: list[tuple[int, dict[str, int]]]
    sources: dict[str, str]
    contradictions: list[tuple[str, str, str, str]]

    def counts(self, in_held: NDArray[np.bool_]) -> tuple[Counter[str], Counter[str]]:
        sides = Counter[str](), Counter[str]()
        for document, labels in self.times:
            sides[bool(in_held[document])].update(labels)
        return sides


def _read(documents: Iterator[Labelled], kept: NDArray[np.bool_], in_held: NDArray[np.bool_]) -> _Seen:
    seen = _Seen(False, False, {}, [], {}, [])
    by_text: dict[bytes, tuple[tuple[str, ...], str]] = {}
    for number, document in enumerate(documents):
        if not kept[number]:
            continue
        seen.is_named, seen.one_each = document.kind in NAMED, document.kind == "classification"
        labels = document.labels
        seen.times.append((number, dict(Counter(labels))))
        for label in set(labels):
            seen.having.setdefault(label, []).append(number)
            if in_held[number]:
                seen.sources.setdefault(label, document.source)
        if len(seen.having) > MAX_LABELS:
            raise InvalidInput(
                f"there are more than {MAX_LABELS} labels, such as {labels[0]!r:.60}: are these texts?",
                param="training_file",
            )
        if seen.is_named:
            text = hashlib.sha256("\n".join(document.texts).encode()).digest()[:16]
            other, source = by_text.setdefault(text, (labels, document.source))
            if other != labels:
                seen.contradictions.append((source, _first(other, labels), document.source, _first(labels, other)))  # fmt: skip
    return seen


def _first(labels: tuple[str, ...], other: tuple[str, ...]) -> str:
    """The first label in which the two differ."""
    return next(
        (one for one, two in zip(labels, other, strict=False) if one != two), labels[0] if labels else ""
    )


def _both_sides(
    having: dict[str, list[int]], in_held: NDArray[np.bool_], place: NDArray[np.float64], one_each: bool
) -> NDArray[np.bool_]:
    """Moves, for each label that a side lacks, the document nearest to that side by its hash."""
    if not in_held.any():
        return in_held
    moved = in_held.copy()
    for _, documents in sorted(having.items()):
        there = np.array(documents)
        if moved[there].all():  # nothing to learn it from
            moved[there[np.argmax(place[there])]] = False
        elif one_each and len(there) > 1 and not moved[there].any():
            moved[there[np.argmin(place[there])]] = True
    return moved


def _refuse_unknown(seen: _Seen, in_held: NDArray[np.bool_], names: tuple[str, ...]) -> None:
    for label, documents in seen.having.items():
        if label not in names and in_held[documents].all():
            known = ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "")
            raise fault(
                seen.sources[label],
                f'has the label "{label}", which no example to learn from has',
                f"Those have {known}{did_you_mean(label, list(names))}",
            )


def _told_missing(names: tuple[str, ...], held: Counter[str], is_measured: bool) -> list[str]:
    missing = [name for name in names if not held[name]]
    if not missing or not is_measured:
        return []
    shown = ", ".join(missing[:MAX_SHOWN]) + (" and others" if len(missing) > MAX_SHOWN else "")
    return [f"the held-out side has no example of {shown}: its figures say nothing of {'it' if len(missing) == 1 else 'them'}"]  # fmt: skip


def _told_contradictions(seen: _Seen) -> list[str]:
    if not seen.contradictions:
        return []
    one, label, other, another = seen.contradictions[0]
    many = len(seen.contradictions)
    texts = "1 text has" if many == 1 else f"{many} texts have"
    return [f'{texts} other labels elsewhere, such as "{label}" in {one} and "{another}" in {other}: all are kept']  # fmt: skip


def _order(name: str) -> tuple[bool, int, str]:
    """Whole numbers by value, then names."""
    is_number = name.lstrip("-").isdecimal() and name.isascii()
    return not is_number, int(name) if is_number else 0, name
