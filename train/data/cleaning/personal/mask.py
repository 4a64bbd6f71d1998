"""Replace personal data in a text, or in a conversation, by what kind it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from train.data.cleaning.clean import SPOKEN, with_texts
from train.data.cleaning.options import PERSONAL_KINDS, Personal, PersonalKind
from train.data.cleaning.personal.addresses import emails, ip_addresses
from train.data.cleaning.personal.keys import keys
from train.data.cleaning.personal.numbers import ibans, numbers
from train.data.cleaning.personal.span import Span
from train.data.examples import Chat, RawExample

MAX_PASSES = 3
"""Of two numbers side by side, the first may hide the second until it is masked."""
PRIORITY: tuple[PersonalKind, ...] = ("key", "email", "iban", "card", "id", "ip", "phone")
"""Of two places that overlap, the kind that is surer."""


def find(text: str, kinds: Sequence[PersonalKind] = PERSONAL_KINDS) -> list[Span]:
    """Where personal data of ``kinds`` is, in order, none inside another."""
    wanted = frozenset(kinds)
    found = sorted(_all(text, wanted), key=lambda span: (PRIORITY.index(span.kind), span.start, -span.end))
    taken: list[Span] = []
    covered = bytearray(len(text) if len(found) > 1 else 0)
    for span in found:
        if not any(covered[span.start : span.end]):
            covered[span.start : span.end] = b"x" * (span.end - span.start)
            taken.append(span)
    return sorted(taken)


class Mask:
    """Replaces what is personal in all texts of one example; ``counts`` says how many places of each kind."""

    def __init__(self, options: Personal) -> None:
        self.options = options
        self._numbers: dict[tuple[str, str], int] = {}
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        """With ``[EMAIL]`` or, where consistent, ``[EMAIL_1]``."""
        for _ in range(MAX_PASSES):
            parts: list[str] = []
            end = 0
            for span in find(text, self.options.kinds):
                parts += [text[end : span.start], self._placeholder(span.kind, text[span.start : span.end])]
                end = span.end
                self.counts[span.kind] += 1
            if not parts:
                break
            text = "".join([*parts, text[end:]])
        return text

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """What it says, and the arguments of its calls."""
        made = {key: self.text(value) if key in SPOKEN else value for key, value in message.items()}
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [
                {
                    **call,
                    "function": {**call["function"], "arguments": self._json(call["function"]["arguments"])},
                }
                for call in calls
            ]
        return made

    def value(self, value: Any) -> Any:
        """The texts and numbers in a value of JSON; a number that is personal becomes a text. Keys stay."""
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            masked = self.text(str(value))
            return masked if masked != str(value) else value
        return value

    def _json(self, text: str) -> str:
        """Arguments that stay as they are written where nothing in them is personal."""
        before = sum(self.counts.values())
        try:
            value = self.value(json.loads(text))
        except (ValueError, RecursionError):
            return self.text(text)
        return json.dumps(value, ensure_ascii=False) if sum(self.counts.values()) > before else text

    def _placeholder(self, kind: PersonalKind | Literal["name"], value: str) -> str:
        if not self.options.consistent:
            return f"[{kind.upper()}]"
        number = self._numbers.setdefault((kind, value), 1 + sum(key[0] == kind for key in self._numbers))
        return f"[{kind.upper()}_{number}]"


def _all(text: str, kinds: frozenset[PersonalKind]) -> Iterator[Span]:
    if "key" in kinds:
        yield from keys(text)
    if "email" in kinds:
        yield from emails(text)
    if "iban" in kinds:
        yield from ibans(text)
    if not kinds.isdisjoint(("card", "id", "phone")):
        yield from numbers(text, kinds)
    if "ip" in kinds:
        yield from ip_addresses(text)


def masked(example: RawExample, options: Personal, counts: Counter[str]) -> RawExample:
    """Without personal data; ``counts`` says how many places of each kind were masked."""
    made = masked_by(mask := Mask(options), example)
    counts.update(mask.counts)
    return made


def masked_by(mask: Mask, example: RawExample) -> RawExample:
    """All texts of ``example`` as ``mask`` makes them."""
    if isinstance(example, Chat):
        return replace(example, messages=[mask.message(message) for message in example.messages])
    return with_texts(example, mask.text)
