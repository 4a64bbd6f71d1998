"""Repair texts that were decoded by a wrong encoding, and write them in one of Unicode's forms; code stays as it is.

Code is what stands between fences or backticks, what is indented by four spaces or a tab, and a text most of whose
lines are code: there another character is another program.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

from train.data.cleaning.clean import CODE_LINE
from train.data.cleaning.options import Encoding

FENCE = re.compile(r"[ \t]{0,3}(?:```|~~~)")
INDENTED = re.compile(r"(?:    |\t)[ \t]*\S")
INLINE = re.compile(r"(`[^`\n]+`)")
MIN_CODE_LINES = 3


def repaired(text: str, options: Encoding, changes: Counter[str]) -> str:
    """By ftfy, where a line shows that UTF-8 was read as another encoding, and in ``options.form``. ``changes`` counts
    characters of the lines that changed."""
    if text.isascii():
        return text
    if options.repair:
        text = _changed(text, _fixed, "encoding_repaired", changes)
    form = options.form
    if form and not unicodedata.is_normalized(form, text):
        text = _changed(text, lambda part: unicodedata.normalize(form, part), "unicode_form", changes)
    return text


def _fixed(line: str) -> str:
    import ftfy
    from ftfy.badness import is_bad

    return ftfy.fix_encoding(line) if is_bad(line) else line


def _changed(text: str, change: Callable[[str], str], name: str, changes: Counter[str]) -> str:
    if change(text) == text and "\n" not in text:
        return text
    lines = text.split("\n")
    if _is_code(lines):
        return text
    made: list[str] = []
    for is_code, part in _parts(lines):
        for line in part:
            new = line if is_code or line.isascii() else _outside_backticks(line, change)
            changes[name] += len(line) if new != line else 0
            made.append(new)
    return "\n".join(made)


def _outside_backticks(line: str, change: Callable[[str], str]) -> str:
    if "`" not in line:
        return change(line)
    return "".join(part if at % 2 else change(part) for at, part in enumerate(INLINE.split(line)))


def _is_code(lines: list[str]) -> bool:
    there = [line for line in lines if line.strip()]
    return len(there) >= MIN_CODE_LINES and 2 * sum(bool(CODE_LINE.fullmatch(line)) for line in there) > len(
        there
    )


def _parts(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Lines in a row that are code, or are not."""
    fenced = False

    def is_code(line: str) -> bool:
        nonlocal fenced
        if FENCE.match(line):
            fenced = not fenced
            return True
        return fenced or bool(INDENTED.match(line))

    for code, part in groupby(lines, is_code):
        yield code, list(part)
