"""A model beside its reference on the same tokens: both perplexities, and how far apart their predictions are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.evaluate.perplexity import Perplexity, blocks, log_softmax, scored_tokens

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference on the same tokens.

    ``divergence`` is the mean Kullback-Leibler divergence KL(reference || model) of next-token distributions,
    in nats; ``agreement`` the share of positions where both hold the same token most likely.
    """

    perplexity: float
    reference_perplexity: float
    divergence: float
    agreement: float
    tokens: int


@dataclass(frozen=True)
class Predictions:
    """Two models at the positions of one window, n = window - 1. Numbers are float64 (n,), tokens int64 (n,)."""

    targets: np.ndarray
    reference_nll: np.ndarray
    nll: np.ndarray
    divergence: np.ndarray
    reference_top: np.ndarray
    top: np.ndarray


def predictions(
    reference_logits: Iterator[np.ndarray], logits: Iterator[np.ndarray], windows: np.ndarray
) -> Iterator[Predictions]:
    """What both models say of each window. reference_logits and logits: float32 (window, vocab) for each."""
    import numpy as np

    for ids, theirs, ours in zip(windows, reference_logits, logits, strict=True):
        parts: list[tuple[np.ndarray, ...]] = []
        for (reference_rows, targets), (rows, _) in zip(blocks(theirs, ids), blocks(ours, ids), strict=True):
            reference, own = log_softmax(reference_rows), log_softmax(rows)  # (rows, vocab)
            each = np.arange(len(targets))
            divergence = np.sum(np.exp(reference) * (reference - own), axis=-1, dtype=np.float64)
            parts.append(
                (
                    targets,
                    -reference[each, targets].astype(np.float64),
                    -own[each, targets].astype(np.float64),
                    divergence,
                    reference.argmax(-1),
                    own.argmax(-1),
                )
            )
        yield Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare(
    reference_logits: Iterator[np.ndarray],
    logits: Iterator[np.ndarray],
    windows: np.ndarray,
) -> Comparison:
    """Both models' perplexities, and how far apart their predictions are, window by window.

    reference_logits and logits: float32 (window, vocab) for each of ``windows``.
    """
    nll = reference_nll = divergence = 0.0
    same = 0
    for one in predictions(reference_logits, logits, windows):
        reference_nll += float(one.reference_nll.sum())
        nll += float(one.nll.sum())
        divergence += float(one.divergence.sum())
        same += int((one.reference_top == one.top).sum())
    tokens = scored_tokens(windows)
    return Comparison(
        perplexity=Perplexity(nll / tokens, tokens).perplexity,
        reference_perplexity=Perplexity(reference_nll / tokens, tokens).perplexity,
        divergence=divergence / tokens,
        agreement=same / tokens,
        tokens=tokens,
    )
