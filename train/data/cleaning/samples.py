"""Examples of what was left out, by rule, for people to look at."""

from __future__ import annotations

import json
from collections.abc import Iterable

from train.data.cleaning.clean import said
from train.data.cleaning.options import Personal
from train.data.cleaning.personal.mask import Mask
from train.data.examples import RawExample

MAX_SAMPLES = 10
"""Of each rule."""
EXCERPT_CHARS = 300

Sample = dict[str, str]
"""{"rule", "source", "text"}: how it begins, without personal data."""


class Samples:
    """The first ten of each rule."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Sample]] = {}

    def of(self, rule: str, example: RawExample) -> None:
        """``example`` was left out by ``rule``."""
        if len(self._kept.setdefault(rule, [])) < MAX_SAMPLES:
            self._kept[rule].append({"rule": rule, "source": example.source, "text": _excerpt(example)})

    def add(self, samples: Iterable[Sample]) -> None:
        """Those of a file."""
        for each in samples:
            if len(self._kept.setdefault(each["rule"], [])) < MAX_SAMPLES:
                self._kept[each["rule"]].append(each)

    def all(self) -> list[Sample]:
        """By rule."""
        return [each for rule in sorted(self._kept) for each in self._kept[rule]]

    def lines(self) -> bytes:
        """As dropped.jsonl holds them."""
        return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in self.all())


def _excerpt(example: RawExample) -> str:
    begin = said(example)[: 2 * EXCERPT_CHARS]
    return Mask(Personal()).text(begin)[:EXCERPT_CHARS]
