"""Rules by which others told good pages from poor ones: Gopher's (Rae et al., 2021, arXiv 2112.11446, appendix A) and
C4's (Raffel et al., 2019, arXiv 1910.10683, section 2.2).

Both were written for English. Where most of a text's words are characters of a script without spaces, two characters
count as a word, the rules on a word's length do not apply, and the marks and the common words are Chinese ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from train.data.cleaning.advertisements import PHRASES
from train.data.cleaning.lists import Hosts, Phrases, read_list, without_lines
from train.data.cleaning.options import Quality
from train.data.cleaning.repetition import why_repetitive
from train.data.cleaning.words import UNSPACED, Words, are_in, words

MIN_WORDS, MAX_WORDS = 50, 100_000
MIN_LENGTH, MAX_LENGTH = 3, 10
MAX_SYMBOLS, MAX_BULLETS, MAX_ELLIPSES, MIN_LETTERS = 0.1, 0.9, 0.3, 0.8
BULLET = tuple("•‣▶◀◦■□▪▫\u2013*-·●")
ELLIPSIS = ("...", "…")
COMMON = np.sort(words("the be to of and that have with"))
COMMON_CHINESE = np.sort(words("的 是 在 了 和 有 不 这 一 我"))
MIN_COMMON = 2
CHARACTERS_A_WORD = 2

END = re.compile(r"""[.!?。！？…]["'”\u2019」』）)\]]{0,3}$""")
SENTENCE = re.compile(r"""[.!?]+["'”\u2019)\]]{0,3}(?=\s|$)|[。！？]+""")
MIN_LINE_WORDS, MIN_SENTENCES = 5, 3
POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies", "javascript",
    "隐私政策", "隐私权政策", "使用条款", "服务条款", "使用cookie", "使用 cookie",
)  # fmt: skip
ALONE = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED) + "]")


def is_unspaced(said: Words) -> bool:
    """Whether most words are characters of a script without spaces."""
    return 2 * int(said.alone.sum()) > len(said)


def gopher(text: str, said: Words) -> str | None:
    """The rule that the text breaks, as the data card names it. ``said``: the text's words."""
    alone = is_unspaced(said)
    count = int((~said.alone).sum()) + int(said.alone.sum()) / CHARACTERS_A_WORD
    if not MIN_WORDS <= count <= MAX_WORDS:
        return "gopher_words"
    lengths = said.ends - said.starts
    if not alone and not MIN_LENGTH <= lengths.mean() <= MAX_LENGTH:
        return "gopher_word_length"
    ellipses = text.count("...") + text.count("……" if alone else "…")
    if max(text.count("#"), ellipses) > MAX_SYMBOLS * count:
        return "gopher_symbols"
    lines = [line for each in text.split("\n") if (line := each.strip())]
    if sum(line.startswith(BULLET) for line in lines) > MAX_BULLETS * len(lines):
        return "gopher_bullets"
    if sum(line.endswith(ELLIPSIS) for line in lines) > MAX_ELLIPSES * len(lines):
        return "gopher_ellipses"
    pieces = text.split()
    if not alone and sum(map(_has_letter, pieces)) < MIN_LETTERS * len(pieces):
        return "gopher_letters"
    common = COMMON_CHINESE if alone else COMMON
    if len(set(said.hashes[are_in(said.hashes, common)].tolist())) < MIN_COMMON:
        return "gopher_common_words"
    return why_repetitive(text, said, CHARACTERS_A_WORD if alone else 1)


def c4_lines(text: str) -> str:
    """The lines that end as a sentence does, have five words and speak of no policy, cookies or JavaScript."""
    return "\n".join(filter(_is_sentence, text.split("\n")))


def c4(text: str) -> str | None:
    """The rule that what :func:`c4_lines` left breaks."""
    if "{" in text:
        return "c4_curly_bracket"
    if "lorem ipsum" in text.lower():
        return "c4_lorem_ipsum"
    sentences = SENTENCE.finditer(text)
    return None if all(next(sentences, None) for _ in range(MIN_SENTENCES)) else "c4_sentences"


def _has_letter(piece: str) -> bool:
    return piece.isalpha() or any(map(str.isalpha, piece))


def _is_sentence(line: str) -> bool:
    line = line.rstrip()
    if not END.search(line, max(0, len(line) - 4)) or line.endswith("..."):
        return False
    count = len(line.split())
    if count < MIN_LINE_WORDS and not line.isascii():
        count += len(ALONE.findall(line)) / CHARACTERS_A_WORD
    low = line.lower()
    return count >= MIN_LINE_WORDS and not any(phrase in low for phrase in POLICY)


class QualityFilter:
    """Takes lines out of texts, and tells which of them are poor; see ``train.data.cleaning.options.Quality``.

    ``given``: the user's lists by the recipe's key. Raises InvalidInput for a list that cannot be read.
    """

    def __init__(self, options: Quality, given: Mapping[str, Sequence[Path]]) -> None:
        self.options = options
        phrases = [*PHRASES] if options.advertisements else []
        if options.lines:
            phrases += read_list(given["quality.lines"], "data.quality.lines")
        self._phrases = Phrases(phrases) if phrases else None
        self._hosts = Hosts(read_list(given["quality.urls"], "data.quality.urls")) if options.urls else None

    def lines(self, text: str, words_of: Callable[[str], Words], changes: Counter[str]) -> str:
        """The text that is left; ``changes`` counts characters of the lines taken out."""
        before = len(text)
        if self._phrases:
            said = words_of(text)
            text = without_lines(text, said, self._phrases.found(said))
        if self._hosts:
            text = self._hosts.without_lines(text)
        changes["listed_lines"] += before - len(text)
        before = len(text)
        if "c4" in self.options.rules:
            text = c4_lines(text)
            changes["c4_lines"] += before - len(text)
        return text

    def why_poor(self, text: str, words_of: Callable[[str], Words]) -> str | None:
        """The rule that the text breaks, as the data card names it."""
        rule = gopher(text, words_of(text)) if "gopher" in self.options.rules else None
        return rule or (c4(text) if "c4" in self.options.rules else None)
