"""The learned part of an example and its context: the two sides by which duplicates are judged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.cleaning.words import shingles, short, words
from train.data.examples import Message, RawExample, Text
from train.data.labelled.example import Labelled
from train.data.splitmix import splitmix64

RULES = ("system", "developer")
FACTS = re.compile(
    r"\d+|[<>=+*/%&|^~$€£¥°]+|!(?=[\w(=])|(?<![\w-])-(?=\w)"
    r"|\b(?:yes|no|not|never|none|nor|neither|without|cannot|and|or|true|false)\b|n['\u2019]t\b"
    r"|\b(?:ja|nein|nicht|nie|kein\w*|und|oder|oui|non|pas|jamais|ou|sí|nunca)\b|[不没沒無否]",
    re.IGNORECASE,
)
"""What turns the meaning of a text with one sign or word: numbers, operators, yes and no, negations, "and" and "or"."""


@dataclass(frozen=True)
class Learnt:
    """``shingles`` of what is learnt, in order: uint32 (n,). ``context``: what it follows, uint32 (1 + n,), first a
    digest of its words in their order, then the words that are no rules, ascending, each once; empty for a text,
    which is learnt whole."""

    shingles: NDArray[np.uint32]
    context: NDArray[np.uint32]


def learnt(raw: RawExample) -> Learnt:
    """Answers that call other functions, with other arguments, or with other :data:`FACTS`, have no shingle in
    common: a paraphrase changes none of these. Nor have questions a word in common that have other facts, or are
    asked under other rules (system messages), or texts with other labels."""
    if isinstance(raw, Text):
        return Learnt(shingles(raw.text), np.zeros(0, np.uint32))
    if isinstance(raw, Labelled):
        same = raw.kind == "classification"  # of other kinds only equal ones are duplicates
        made = shingles("\n".join(raw.texts), _salt(raw.labels)) if same else np.zeros(0, np.uint32)
        return Learnt(made, np.zeros(0, np.uint32))
    answers = [message for message in raw.messages if is_learnt(message)]
    target = "\n".join(map(_said, answers))
    calls = [call["function"] for message in answers for call in message.get("tool_calls", ())]
    return Learnt(shingles(target, _salt("chat", calls, facts(target))), _context(raw.messages))


def facts(text: str) -> list[str]:
    """In their order."""
    return FACTS.findall(text.lower())


def _context(messages: list[Message]) -> NDArray[np.uint32]:
    others = [message for message in messages if not is_learnt(message)]
    rules = "\n".join(_said(message) for message in others if message["role"] in RULES)
    asked = "\n".join(_said(message) for message in others if message["role"] not in RULES)
    salt = np.uint64(_salt(words(rules).tolist(), facts(rules), facts(asked)))
    said = splitmix64(words(asked) ^ salt)
    order = np.array([_salt(said.tolist(), int(salt))], dtype=np.uint64)
    return np.concatenate([short(order), np.unique(short(said))])


def _salt(*parts: object) -> int:
    """64 bits of a hash of ``parts``."""
    said = json.dumps(parts, sort_keys=True)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "little")


def is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _said(message: Message) -> str:
    return "\n".join(filter(None, (message.get("reasoning_content"), message.get("content"))))
