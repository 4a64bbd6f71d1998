"""What of an example is learnt, and what it is learnt beside: the two sides by which duplicates are judged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.examples import Message, RawExample, Text
from train.data.words import shingles, short, words


@dataclass(frozen=True)
class Learnt:
    """``shingles`` of what is learnt, in order: uint32 (n,). ``context``: the words that it follows, ascending,
    each once: uint32 (n,); none for a text, which is learnt whole."""

    shingles: NDArray[np.uint32]
    context: NDArray[np.uint32]


def learnt(raw: RawExample) -> Learnt:
    """Answers that call other functions, with other arguments or numbers, have no shingle in common: such things
    are facts, and a paraphrase does not change them."""
    if isinstance(raw, Text):
        return Learnt(shingles(raw.text), np.zeros(0, np.uint32))
    answers = [message for message in raw.messages if is_learnt(message)]
    target = "\n".join(map(_said, answers))
    calls = [call["function"] for message in answers for call in message.get("tool_calls", ())]
    facts = json.dumps(["chat", calls, re.findall(r"\d+", target)], sort_keys=True)
    salt = int.from_bytes(hashlib.sha256(facts.encode()).digest()[:8], "little")
    context = "\n".join(_said(message) for message in raw.messages if not is_learnt(message))
    return Learnt(shingles(target, salt), np.unique(short(words(context))))


def is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _said(message: Message) -> str:
    return "\n".join(filter(None, (message.get("reasoning_content"), message.get("content"))))
