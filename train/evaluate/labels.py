"""How well labels are told: accuracy, F1 of labels and of spans, and how well scores order pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def accuracy_and_f1(gold: NDArray[np.int64], said: NDArray[np.int64]) -> dict[str, float]:
    """int64 (n,) each. ``macro_f1``: the mean over the labels that are in either, as scikit-learn has it."""
    scores: list[float] = []
    for label in np.union1d(gold, said):
        right = int(((gold == label) & (said == label)).sum())
        scores.append(_f1(right, int((said == label).sum()), int((gold == label).sum())))
    return {
        "accuracy": float((gold == said).mean()) if len(gold) else 0.0,
        "macro_f1": float(np.mean(scores)) if scores else 0.0,
    }


def span_f1(gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of the spans that BIO tags mark, a list of tags per sentence: a span is right where its words and its type are,
    as in CoNLL's script and seqeval's default mode."""
    theirs = {(n, *span) for n, tags in enumerate(gold) for span in spans(tags)}
    ours = {(n, *span) for n, tags in enumerate(said) for span in spans(tags)}
    right = len(theirs & ours)
    return {
        "span_precision": right / len(ours) if ours else 0.0,
        "span_recall": right / len(theirs) if theirs else 0.0,
        "span_f1": _f1(right, len(ours), len(theirs)),
    }


def spans(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Type, first word and last word of each span. One begins at B-, or at an I- of another type than before it."""
    begun: tuple[str, int] | None = None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if begun and (prefix != "I" or kind != begun[0]):
            yield begun[0], begun[1], place - 1
            begun = None
        if begun is None and prefix in ("B", "I"):
            begun = kind, place


def is_bio(names: Sequence[str]) -> bool:
    """Whether tags mark spans: O, B-… and I-… alone."""
    return any(name.startswith("B-") for name in names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in names
    )


def _f1(right: int, said: int, there: int) -> float:
    return 2 * right / (said + there) if said + there else 0.0


def area_under_curve(is_right: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The chance that a right one has a higher score than a wrong one, ties counting half; 0.5 where one kind lacks.

    (n,) each; by ranks, as Mann and Whitney's U.
    """
    right, wrong = int(is_right.sum()), int((~is_right).sum())
    if not right or not wrong:
        return 0.5
    return float((ranks(scores)[is_right].sum() - right * (right + 1) / 2) / (right * wrong))


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's; 0 where either is constant. (n,) each."""
    a, b = ranks(one), ranks(other)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; of equal values, the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
