"""Clean a text before it is counted, and say why some are left out."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from train.data.cleaning.words import ALONE, classes, code_points
from train.data.examples import Chat, RawExample, Text
from train.data.labelled.example import Labelled
from train.data.options import DataOptions

LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
"""Whatever ends a line, a page or a record becomes a line break: taken out, it would glue two words together."""
CONTROL = {
    code: None
    for code in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF)
    if code not in (0x09, 0x0A) and not LINE_ENDS.fullmatch(chr(code))
}
"""Terminal escapes and byte order marks; tabs and line breaks stay."""
HAS_CONTROL = re.compile("[" + "".join(map(re.escape, map(chr, CONTROL))) + "]")
SPOKEN = ("reasoning_content", "content")

LONG_RUN = re.compile(r"(\S)\1{15,}")
MIN_LINES = 10
"""Fewer lines say nothing about repetition."""
CODE_LINE = re.compile(r"[ \t].*|.*[][{}()<>;:,|\\=&+*/%-]\s*|[^\w\n]*")
"""A line of code, data, verse or a table rather than of prose: indented, ending in what no sentence ends in, or
without a letter."""
CODE_WORD = re.compile(
    r"(?:end|ret|retq?|nop|leave|fi|done|esac|else|then|do|begin|pass|return|break|continue|next|endif|endfor|enddo)",
    re.IGNORECASE,
)
"""A line of one word that programs repeat."""
SHORT_LINE = re.compile(r"\S+(?:[ \t]+\S+){0,2}")
"""As those of assembly and of languages without braces: "push rbp", "end if"."""
CODE_PART = 0.1
"""Where so many lines are of code, short ones are too."""
CHARACTERS_A_WORD = 4
"""What one character counts for where it says about a word: Chinese, Japanese, Korean, Thai."""

DEFAULT = DataOptions()


def cleaned(
    raw: RawExample, options: DataOptions = DEFAULT, changes: Counter[str] | None = None
) -> RawExample:
    """The same words with "\\n" at line ends, without control characters, and with ``options.normalize`` in Unicode's
    NFC; with ``options.strip`` a text has no spaces at line ends. ``changes`` counts characters, by what was done."""
    done: Counter[str] = Counter() if changes is None else changes
    strip = options.strip and isinstance(raw, Text)

    def change(text: str) -> str:
        text = _characters(text, options, done)
        return _stripped(text, done) if strip else text

    return with_texts(raw, change)


def with_texts(raw: RawExample, change: Callable[[str], str]) -> RawExample:
    """Everything that is said as ``change`` makes it; but texts that labels point into."""
    if isinstance(raw, Text):
        return replace(raw, text=change(raw.text))
    if isinstance(raw, Labelled):
        return raw.with_texts(change)
    messages = [
        {key: change(value) if key in SPOKEN else value for key, value in message.items()}
        for message in raw.messages
    ]
    return replace(raw, messages=messages)


def why_dropped(raw: RawExample, options: DataOptions) -> str | None:
    """The reason to leave a cleaned example out, as the data card names it; None to keep it.

    The two on repetition are for texts alone (after Rae et al., 2021, arXiv 2112.11446, table A1, made milder:
    code and verse repeat themselves); a conversation is as its author wrote it.
    """
    if isinstance(raw, Text) and raw.left_out:
        return raw.left_out
    if length(raw) > options.max_chars:
        return "too_long"
    if isinstance(raw, Chat):
        answers = (message for message in raw.messages if message["role"] == "assistant")
        empty = not any(
            message.get("content", "").strip() or message.get("tool_calls") for message in answers
        )
        return "empty" if empty else None
    if isinstance(raw, Labelled):
        return None if all(map(str.strip, raw.texts)) else "empty"
    if not raw.text.strip():
        return "empty"
    if len(raw.text) < options.min_chars and weight(raw.text) < options.min_chars:
        return "too_short"
    if _repeated_lines(raw.text) > options.max_repeated_lines:
        return "repeated_lines"
    if _repeated_characters(raw.text) > options.max_repeated_chars:
        return "repeated_chars"
    return None


def length(raw: RawExample) -> int:
    """Characters of everything that is said."""
    return len(said(raw))


def weight(text: str) -> int:
    """Its characters, where one that says about a word counts as four."""
    alone = np.count_nonzero(classes()[code_points(text)] == ALONE)
    return len(text) + (CHARACTERS_A_WORD - 1) * int(alone)


def said(raw: RawExample) -> str:
    """Everything an example says, in one text."""
    if isinstance(raw, Text):
        return raw.text
    if isinstance(raw, Labelled):
        return "\n".join(raw.texts)
    return "\n".join(message[key] for message in raw.messages for key in SPOKEN if key in message)


def _characters(text: str, options: DataOptions, changes: Counter[str]) -> str:
    text, ends = LINE_ENDS.subn("\n", text)
    changes["line_ends"] += ends
    if HAS_CONTROL.search(text):
        before = len(text)
        text = text.translate(CONTROL)
        changes["control_characters"] += before - len(text)
    if options.normalize and not unicodedata.is_normalized("NFC", text):
        normal = unicodedata.normalize("NFC", text)
        alone = sum(not unicodedata.is_normalized("NFC", char) for char in text)
        changes["normalized"] += max(1, alone, len(text) - len(normal))
        text = normal
    return text


def _stripped(text: str, changes: Counter[str]) -> str:
    lines = (line.rstrip() for line in text.split("\n"))
    stripped = "\n".join(lines).strip("\n")
    changes["stripped"] += len(text) - len(stripped)
    return stripped


def _repeated_lines(text: str) -> float:
    """The share of lines of prose that were there before."""
    every = [line for line in text.split("\n") if line.strip()]
    lines = [line.strip() for line in every if not CODE_LINE.fullmatch(line)]
    lines = [line for line in lines if not CODE_WORD.fullmatch(line)]
    if len(every) - len(lines) > CODE_PART * len(every):
        lines = [line for line in lines if not SHORT_LINE.fullmatch(line)]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= MIN_LINES else 0.0


def _repeated_characters(text: str) -> float:
    """The share of visible characters in runs of 16 or more of the same; a ruled line counts as one character."""
    letters = ruled = 0
    for match in LONG_RUN.finditer(text):
        if match[1].isalnum():
            letters += len(match[0])
        else:
            ruled += len(match[0]) - 1
    return letters / max(1, len(text) - ruled - text.count(" ") - text.count("\n"))
