"""Quality beside a reference, on several texts: likelihood, predictions, and whole words got right.

The task is LAMBADA's (arXiv 1606.06031), at every word instead of a paragraph's last: the word counts as right where
each of its tokens is the most likely one, given everything before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.evaluate.comparison import Predictions, predictions
from train.evaluate.held_out_text import token_windows

if TYPE_CHECKING:
    import numpy as np

TOKENS_PER_TEXT = 2048


@dataclass(frozen=True)
class Quality:
    """On one text. ``nll`` and ``divergence`` (KL from the reference) in nats per token; ``agreement``: the same most
    likely token. Of ``words``, ``right`` were predicted; ``flips``: right here and wrong there, or the other way round.
    """

    tokens: int
    nll: float
    reference_nll: float
    divergence: float
    agreement: float
    words: int
    right: int
    reference_right: int
    flips: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    @property
    def ratio(self) -> float:
        """Perplexity over the reference's."""
        return math.exp(self.nll - self.reference_nll)


def windows_of(
    tokenizer_file: Path, texts: Mapping[str, str], tokens: int = TOKENS_PER_TEXT
) -> dict[str, np.ndarray]:
    """The first tokens of each text: int64 (windows, window), by name. Raises InvalidInput for a short text."""
    return {name: token_windows(tokenizer_file, text, tokens) for name, text in texts.items()}


def word_starts(tokenizer_file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that says of tokens int64 (n,) which ones begin a word: bool (n,)."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    count = tokenizer.get_vocab_size()
    begins = np.array([tokenizer.decode([one])[:1].isspace() for one in range(count)])
    return lambda ids: begins[ids]


def quality(
    reference: Iterator[np.ndarray],
    logits: Iterator[np.ndarray],
    windows: np.ndarray,
    starts: Callable[[np.ndarray], np.ndarray],
) -> Quality:
    """reference and logits: float32 (window, vocab) of each of ``windows``, int64 (windows, window)."""
    import numpy as np

    seen = list(predictions(reference, logits, windows))
    words = np.concatenate([words_right(one, starts) for one in seen])  # (words, 2)
    tokens = sum(len(one.targets) for one in seen)

    def mean(values: Callable[[Predictions], np.ndarray]) -> float:
        return float(sum(values(one).sum() for one in seen)) / tokens

    return Quality(
        tokens=tokens,
        nll=mean(lambda one: one.nll),
        reference_nll=mean(lambda one: one.reference_nll),
        divergence=mean(lambda one: one.divergence),
        agreement=mean(lambda one: one.top == one.reference_top),
        words=len(words),
        right=int(words[:, 0].sum()),
        reference_right=int(words[:, 1].sum()),
        flips=int((words[:, 0] != words[:, 1]).sum()),
    )


def qualities(
    reference: np.ndarray,
    logits: Iterator[np.ndarray],
    windows: Mapping[str, np.ndarray],
    starts: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Quality]:
    """Of each text, by name. reference: float32 (windows of all texts, window, vocab); logits: one of these each."""
    at, found = 0, dict[str, Quality]()
    for name, rows in windows.items():
        ours = (next(logits) for _ in range(len(rows)))
        found[name] = quality(iter(reference[at : at + len(rows)]), ours, rows, starts)
        at += len(rows)
    return found


def words_right(one: Predictions, starts: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Which whole words of a window were right, here and at the reference: bool (words, 2).

    What stands before the first beginning and after the last one may be cut, and is left out.
    """
    import numpy as np

    begins = np.flatnonzero(starts(one.targets))
    if len(begins) < 2:
        return np.zeros((0, 2), dtype=bool)
    wrong = np.stack([one.top != one.targets, one.reference_top != one.targets], axis=1)
    return np.add.reduceat(wrong[: begins[-1]], begins[:-1], axis=0) == 0
