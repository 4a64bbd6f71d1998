"""What every text goes through before it is counted, and why some are left out."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from train.data.card import DataOptions
from train.data.examples import Chat, RawExample, Text

CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF) if code not in (0x09, 0x0A)}
"""Terminal escapes, form feeds and byte order marks; tabs and line breaks stay."""

LONG_RUN = re.compile(r"(\S)\1{15,}")
MIN_LINES = 10
"""Fewer lines say nothing about repetition."""


def cleaned(raw: RawExample) -> RawExample:
    """The same words in Unicode's NFC, without control characters; texts also without spaces at line ends."""
    if isinstance(raw, Chat):
        messages = [
            {**message, "content": _characters(message["content"])} if "content" in message else message
            for message in raw.messages
        ]
        return replace(raw, messages=messages)
    lines = (line.rstrip() for line in _characters(raw.text).split("\n"))
    return replace(raw, text="\n".join(lines).strip("\n"))


def why_dropped(raw: RawExample, options: DataOptions) -> str | None:
    """The reason to leave a cleaned example out, as the data card names it; None to keep it.

    The two on repetition are for texts alone (after Rae et al., 2021, arXiv 2112.11446, table A1, made milder:
    code and verse repeat themselves); a conversation is as its author wrote it.
    """
    size = length(raw)
    if size > options.max_chars:
        return "too_long"
    if isinstance(raw, Chat):
        answers = (message for message in raw.messages if message["role"] == "assistant")
        empty = not any(
            message.get("content", "").strip() or message.get("tool_calls") for message in answers
        )
        return "empty" if empty else None
    if not raw.text.strip():
        return "empty"
    if size < options.min_chars:
        return "too_short"
    if _repeated_lines(raw.text) > options.max_repeated_lines:
        return "repeated_lines"
    if _repeated_characters(raw.text) > options.max_repeated_chars:
        return "repeated_chars"
    return None


def length(raw: RawExample) -> int:
    """Characters of everything that is said."""
    return len(said(raw))


def said(raw: RawExample) -> str:
    """Everything an example says, in one text."""
    if isinstance(raw, Text):
        return raw.text
    return "\n".join(message.get("content", "") for message in raw.messages)


def _characters(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(CONTROL)
    return unicodedata.normalize("NFC", text)


def _repeated_lines(text: str) -> float:
    """The share of lines that were there before."""
    lines = [line for part in text.split("\n") if (line := part.strip())]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= MIN_LINES else 0.0


def _repeated_characters(text: str) -> float:
    """The share of visible characters in runs of 16 or more of the same."""
    runs = sum(match.end() - match.start() for match in LONG_RUN.finditer(text))
    return runs / max(1, len(text) - text.count(" ") - text.count("\n"))
