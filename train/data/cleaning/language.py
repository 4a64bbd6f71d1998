"""Tell the language of a text, from a few windows of it, and whether it is one of those to keep.

A window is judged by its prose alone: words in a row, of one script. Where most of it is in a script of one language
(Chinese characters without kana are Chinese), the script decides; else py3langid does, over 140 languages. A window
that holds code, numbers or too few words says nothing, nor does one whose language is not told with the probability
asked for. So a text is left out only where more than half of the windows that say something are in other languages:
short texts and code are kept, and a text in two languages that are both kept is too.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from everlearn.errors import InvalidInput
from everlearn.suggest import did_you_mean
from train.data.cleaning.options import Languages
from train.data.cleaning.words import ALONE, BETWEEN, classes, code_points

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDECIDED = "und"
"""ISO 639-2's code of it."""
WINDOW_CHARS = 600
MAX_WINDOWS = 3
JUDGED_CHARS = 240
"""Of a window's prose: py3langid reads 2 MB a second."""
MIN_LETTERS = 40
"""Of a spaced script; of the others a quarter."""
PROSE = re.compile(
    r"[^\W\d_]+(?:[\u2019'.,;:!?)\"\u201d]{0,2}[ \n][(\"\u201c]?[^\W\d_]+(?:[\u2019'-][^\W\d_]+)?){3,}"
)
"""Four words in a row with nothing between them but what stands in sentences."""
SCRIPTS = (
    ("th", 0x0E00, 0x0E7F), ("lo", 0x0E80, 0x0EFF), ("my", 0x1000, 0x109F), ("km", 0x1780, 0x17FF),
    ("ja", 0x3040, 0x30FF), ("ko", 0xAC00, 0xD7AF),
)  # fmt: skip
"""Languages that one script tells, of those written without spaces; kana mixed with Chinese characters is Japanese."""
KANA_PART = 0.05
ALSO = {"yue": "zh", "wuu": "zh", "nn": "no", "nb": "no", "arz": "ar", "ary": "ar", "uzs": "uz"}
"""What a language is also counted as."""


class LanguageFilter:
    """Tells languages, and which texts to keep. Raises InvalidInput for a language that is not known."""

    def __init__(self, options: Languages) -> None:
        known = {*_identifier().labels, *ALSO.values()}
        for language in options.keep:
            if language not in known:
                what = f"data.languages.keep: {language!r} is no language that is told apart"
                raise InvalidInput(f"{what}{did_you_mean(language, known)}", param="data.languages.keep")
        self._keep = frozenset(options.keep)
        self._least = options.min_probability

    def judge(self, text: str) -> tuple[str, bool]:
        """The language of most of it, ``und`` where nothing tells, and whether it is kept."""
        votes: Counter[str] = Counter()
        for number, window in enumerate(_windows(text)):
            if number == MAX_WINDOWS - 1 and len(votes) == 1 and votes.total() == number:
                break  # the last changes nothing
            if language := self._language(window):
                votes[language] += 1
        if not votes:
            return UNDECIDED, True
        kept = sum(count for language, count in votes.items() if self._keeps(language))
        return max(sorted(votes), key=votes.__getitem__), 2 * kept >= votes.total()

    def _keeps(self, language: str) -> bool:
        return language in self._keep or ALSO.get(language) in self._keep

    def _language(self, window: str) -> str | None:
        if not window.isascii() and (found := _by_script(window)):
            return found
        prose = ""
        for found in PROSE.finditer(window):
            prose = f"{prose} {found[0]}"[:JUDGED_CHARS]
            if len(prose) == JUDGED_CHARS:
                break
        if len(prose) <= MIN_LETTERS:
            return None
        language, probability = _identifier().classify(prose)
        return language if probability >= self._least else None


def _windows(text: str) -> list[str]:
    """The first, the last and the middle one."""
    last = max(0, len(text) - WINDOW_CHARS)
    places = (0, last, last // 2) if len(text) >= MAX_WINDOWS * WINDOW_CHARS else (0, last)
    return [text[at : at + WINDOW_CHARS] for at in (places if len(text) >= 2 * WINDOW_CHARS else places[:1])]


def _by_script(window: str) -> str | None:
    """The language, where most letters are of a script without spaces."""
    points = code_points(window)
    kinds = classes()[points]
    alone = points[kinds == ALONE]
    spaced = int(np.count_nonzero(kinds != BETWEEN)) - len(alone)
    if 4 * len(alone) < MIN_LETTERS or 4 * len(alone) <= spaced:
        return None
    counts = {
        language: int(np.count_nonzero((alone >= first) & (alone <= last)))
        for language, first, last in SCRIPTS
    }
    if counts["ja"] >= KANA_PART * len(alone):
        return "ja"
    best = max(counts, key=counts.__getitem__)
    return best if 2 * counts[best] > len(alone) else "zh"


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
