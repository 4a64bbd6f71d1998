"""How records of one kind are read: which keys and columns there are, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from train.data.examples import RawExample, parse_record
from train.data.reading.forms import ANSWERS, KNOWN, LISTS, PREFERENCES, QUESTIONS, RIGHT, STARTS


@dataclass(frozen=True)
class Schema:
    """``parse``: of a record, where it was read, and what of it was not even read. ``known``: the keys and columns
    that are read; those of ``unpacked`` hold lists or objects, as JSON in a table's cells. ``starts``: those that a
    form begins with. ``is_enough``: whether a table with these columns has a form. ``right``: what would be.
    """

    parse: Callable[[Any, str, tuple[str, ...]], RawExample]
    known: frozenset[str]
    lists: frozenset[str]
    unpacked: frozenset[str]
    starts: tuple[str, ...]
    is_enough: Callable[[Collection[str]], bool]
    right: str

    @cached_property
    def starting(self) -> re.Pattern[str]:
        """How JSON begins whose records have a form, or one object that holds them."""
        return re.compile(rf"""[\[{{\s]*(?:"[^"\\]*"\s*:[\[{{\s]*)?"(?:{"|".join(self.starts)})"\s*:""")

    @cached_property
    def names_a_start(self) -> re.Pattern[bytes]:
        return re.compile("[\"'](?:{})[\"']\\s*:".format("|".join((*self.starts, "role", "from"))).encode())


def _begins(found: Collection[str]) -> bool:
    asks = set(found) & set(QUESTIONS) - {"prompt"}
    starts = set(found) & (set(STARTS) - set(QUESTIONS)) or "prompt" in found
    return bool(starts or (asks and set(found) & set(ANSWERS)))


UNLABELLED = Schema(
    parse_record,
    frozenset(KNOWN),
    frozenset(LISTS),
    frozenset(LISTS) - {"prompt", "completion", *PREFERENCES},
    STARTS,
    _begins,
    RIGHT,
)
"""Texts and conversations."""
