"""How well answers are found, as SQuAD's script has it (arXiv 1606.05250): exact match and F1 of their words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_and_f1(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over questions. ``wanted``: of each, all answers that are right; none, or "", where there is none."""
    exact = f1 = 0.0
    for answer, right in zip(said, wanted, strict=True):
        words = _words(answer)
        options = [_words(each) for each in right] or [[]]
        exact += max(words == each for each in options)
        f1 += max(_f1(words, each) for each in options)
    return {"exact_match": exact / max(1, len(said)), "answer_f1": f1 / max(1, len(said))}


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
