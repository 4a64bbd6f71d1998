"""References to versions, as people write them: ``smollm2``, ``smollm2@3`` or ``smollm2@champion``."""

from __future__ import annotations

from dataclasses import dataclass

from everlearn.bundles.contents import check_name
from everlearn.errors import InvalidInput

MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class Reference:
    """A model, and which of its versions: a number, an alias, or (None) the one that serves."""

    model: str
    version: int | str | None = None

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}@{self.version}"


def parse_reference(text: str) -> Reference:
    """Raises InvalidInput saying what a reference looks like."""
    model, at, version = text.partition("@")
    check_name(model, "a model's name")
    if not at:
        return Reference(model)
    if version.isascii() and version.isdigit():
        number = int(version) if len(version) <= 10 else 0
        if not 1 <= number <= MAX_VERSION:
            raise InvalidInput(f"{text[:80]!r}: versions count from 1", param="version")
        return Reference(model, number)
    return Reference(model, check_alias(version))


def check_alias(alias: str) -> str:
    """``alias``, where it can name a version. Raises InvalidInput."""
    if alias.isascii() and alias.isdigit():
        raise InvalidInput(f"an alias is a word, not the number {alias[:80]}", param="alias")
    return check_name(alias, "an alias")
