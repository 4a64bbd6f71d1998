"""A place in a text."""

from typing import NamedTuple

from train.data.cleaning.options import PersonalKind


class Span(NamedTuple):
    """Characters ``start`` to ``end`` are of this kind."""

    start: int
    end: int
    kind: PersonalKind
