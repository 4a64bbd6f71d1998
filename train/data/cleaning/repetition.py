"""How much of a text repeats, as Gopher's rules measure it (Rae et al., 2021, arXiv 2112.11446, table A1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.data.cleaning.words import Words, are_in, grams

TOP = {2: 0.20, 3: 0.18, 4: 0.16}
"""The largest share of characters in the most frequent n-gram, by n."""
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""The largest share of characters in n-grams that were there before, by n."""
LINES, LINE_CHARS = 0.30, 0.20
"""The largest share of lines, and of their characters, in lines that were there before; so of paragraphs."""


def why_repetitive(text: str, said: Words, step: int) -> str | None:
    """The rule that the text breaks. ``step``: how many of ``said`` are a word."""
    for name, parts in (("lines", text.split("\n")), ("paragraphs", text.split("\n\n"))):
        count, chars = _repeated([part.strip() for part in parts if part.strip()])
        if count > LINES or chars > LINE_CHARS:
            return f"gopher_repeated_{name}"
    lengths = said.ends - said.starts
    before = np.concatenate([[0], np.cumsum(lengths)])  # characters of the words before each
    total = max(1, int(before[-1]))
    for n, share in TOP.items():
        if _top(grams(said.hashes, n * step), n * step, before) > share * total:
            return "gopher_top_phrase"
    for n, share in REPEATED.items():
        covered = _covered(grams(said.hashes, n * step), n * step, len(said))
        if covered is None:
            return None
        if int(lengths[covered].sum()) > share * total:
            return "gopher_repeated_phrases"
    return None


def _repeated(parts: list[str]) -> tuple[float, float]:
    """The share of parts, and of characters, that were there before."""
    if len(set(parts)) == len(parts):
        return 0.0, 0.0
    chars = sum(map(len, parts))
    own = sum(map(len, set(parts)))
    return 1 - len(set(parts)) / len(parts), 1 - own / chars


def _top(made: NDArray[np.uint64], size: int, before: NDArray[np.int64]) -> int:
    """Characters of the most frequent of ``made``, in all its places; 0 where none comes twice."""
    ordered = np.sort(made)
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(ordered)]]))
    if not len(made) or counts.max() < 2:
        return 0
    most = int(counts.max())
    best = np.flatnonzero(are_in(made, ordered[np.concatenate([[0], edges])][counts == most]))
    return most * int((before[best + size] - before[best]).max())


def _covered(made: NDArray[np.uint64], size: int, words: int) -> NDArray[np.bool_] | None:
    """Words in those of ``made`` that were there before, bool (words,); None where there are none."""
    ordered = np.sort(made)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    new = np.zeros(len(made), dtype=np.bool_)
    new[np.unique(made, return_index=True)[1]] = True
    again = np.flatnonzero(~new)
    edges = np.zeros(words + 1, dtype=np.int64)
    np.add.at(edges, again, 1)
    np.add.at(edges, again + size, -1)
    return np.cumsum(edges)[:-1] > 0
