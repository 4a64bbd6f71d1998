"""Leave out texts that hold a part of an evaluation set, or what is measured on it means nothing.

Two texts have a part in common where 13 words in a row are the same (Brown et al., 2020, arXiv 2005.14165, appendix
C); of Chinese, Japanese and Korean, 13 characters. An evaluation example of fewer words, but at least 8, is looked
for whole. What many examples of the evaluation sets say, such as an instruction, is a template and no part of any.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from train.data.cleaning.near_duplicates import MANY
from train.data.cleaning.options import Decontaminate
from train.data.cleaning.words import are_in, grams
from train.data.cleaning.words import words as words_of

MIN_WORDS = 8
"""Fewer words in a row are a phrase that anybody may write."""


class EvaluationSet:
    """The parts of evaluation sets, eight bytes each; :meth:`has_part_of` looks a text up."""

    def __init__(self, texts: Iterable[str], options: Decontaminate) -> None:
        count = options.words
        found: dict[int, list[NDArray[np.uint64]]] = {}
        for text in texts:
            hashes = words_of(text)
            length = min(count, len(hashes))
            if length >= min(MIN_WORDS, count):
                found.setdefault(length, []).append(np.unique(grams(hashes, length)))
        self._parts = {length: _not_templates(parts) for length, parts in sorted(found.items())}

    def has_part_of(self, hashes: NDArray[np.uint64]) -> bool:
        """hashes: uint64 (words,), of a text's words, see ``train.data.cleaning.words``."""
        return any(are_in(grams(hashes, length), parts).any() for length, parts in self._parts.items())


def _not_templates(parts: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Those that fewer than MANY examples have; uint64, ascending."""
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    return values[counts < MANY]
