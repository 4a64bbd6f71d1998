"""The gate: the measured decision whether a candidate may become champion.

Champion and candidate are scored on the same held-out documents, and the difference of their mean negative
log-likelihoods gets bounds (``continual.learn.bounds``). The candidate must gain on the new domain. On an earlier one
it must not fall further below the best that the model ever scored there than the recipe allows, however many jobs it
took.

The thresholds are keys of the recipe: ``GateThresholds`` in ``continual/recipe.py`` has their defaults (``min_gain``,
``max_forgetting``, ``confidence``, ``resamples``, ``unmeasured``), and beside it stands ``MIN_DOCUMENTS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from continual.learn.bounds import bounds
from continual.recipe import MIN_DOCUMENTS, GateThresholds

MEND = (
    "Teach more documents of it, with a larger held_fraction or a validation file; delete what is kept of it "
    "(`everlearn replay rm`); or let it pass unmeasured (gate.unmeasured: allow)"
)


@dataclass(frozen=True)
class Scores:
    """One model on one domain's held-out documents: the sum of -log p in nats, and the tokens it is over."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return sum(self.nll) / max(sum(self.tokens), 1)


@dataclass(frozen=True)
class Earlier:
    """An earlier domain's scores, all on the same documents.

    ``best`` are those of ``version``, the best that there was so far; ``begins`` where nothing was remembered, and the
    champion's own begin it.
    """

    best: Scores
    champion: Scores
    candidate: Scores
    version: str
    begins: bool = False


@dataclass(frozen=True)
class Change:
    """From one model to the candidate on one domain, in nats per token; ``mean`` > 0 is better.

    ``low`` and ``high`` are one-sided bounds of ``mean``, each with the recipe's confidence.
    """

    domain: str
    documents: int
    tokens: int
    before: float
    candidate: float
    mean: float
    low: float
    high: float

    @property
    def measured(self) -> bool:
        """Whether there are enough documents for the bounds to mean something."""
        return self.documents >= MIN_DOCUMENTS


@dataclass(frozen=True)
class Retention:
    """What the candidate kept of an earlier domain: beside the champion, and beside the best so far, which decides."""

    champion: Change
    best: Change
    version: str
    begins: bool

    @property
    def domain(self) -> str:
        return self.champion.domain


@dataclass(frozen=True)
class Verdict:
    """``reasons`` say why not; empty, the candidate passed. ``warnings`` say what was allowed unmeasured."""

    gain: Change
    kept: tuple[Retention, ...]
    thresholds: GateThresholds
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons

    def report(self) -> dict[str, Any]:
        """As plain JSON. ``forgetting`` is a change turned round: above zero, the candidate is worse."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "thresholds": self.thresholds.model_dump(),
            "gain": _plain(self.gain),
            "kept": [_plain_retention(kept) for kept in self.kept],
        }


def judge(
    domain: str,
    new: tuple[Scores, Scores],
    earlier: Mapping[str, Earlier],
    thresholds: GateThresholds,
    seed: int,
) -> Verdict:
    """``new``: the champion's and the candidate's scores on what the job teaches.

    A domain with fewer than ``MIN_DOCUMENTS`` documents cannot be measured: it is refused, an earlier one unless the
    thresholds allow it.
    """
    gain = compare(domain, *new, thresholds, seed)
    kept = tuple(_compare_earlier(name, scores, thresholds, seed) for name, scores in sorted(earlier.items()))
    reasons = [_why_no_gain(gain, thresholds), *(_why_forgotten(each, thresholds) for each in kept)]
    warnings: list[str] = []
    for each in kept:
        if why := _why_unmeasured(each.best):
            if thresholds.unmeasured == "allow":
                warnings.append(f"{why}. The recipe lets it pass unmeasured")
            else:
                reasons.append(f"{why}. {MEND}")
    return Verdict(gain, kept, thresholds, tuple(filter(None, reasons)), tuple(warnings))


def compare(domain: str, before: Scores, candidate: Scores, thresholds: GateThresholds, seed: int) -> Change:
    """Mean difference per token over the documents, with its bounds."""
    if candidate.tokens != before.tokens:
        raise ValueError(f"{domain}: the two models were scored on different documents")
    differences = np.array(before.nll, dtype=np.float64) - np.array(candidate.nll, dtype=np.float64)
    tokens = np.array(before.tokens, dtype=np.float64)  # (documents,)
    low, high = bounds(differences, tokens, thresholds.confidence, thresholds.resamples, seed)
    return Change(
        domain=domain,
        documents=len(tokens),
        tokens=int(tokens.sum()),
        before=before.mean,
        candidate=candidate.mean,
        mean=float(differences.sum() / max(tokens.sum(), 1.0)),
        low=low,
        high=high,
    )


def _compare_earlier(domain: str, scores: Earlier, thresholds: GateThresholds, seed: int) -> Retention:
    champion = compare(domain, scores.champion, scores.candidate, thresholds, seed)
    best = compare(domain, scores.best, scores.candidate, thresholds, seed)
    return Retention(champion, best, scores.version, scores.begins)


def _why_no_gain(gain: Change, thresholds: GateThresholds) -> str | None:
    if not gain.measured:
        return (
            f"{gain.domain}: {gain.documents} held-out documents are too few to measure a gain on; at least "
            f"{MIN_DOCUMENTS} are needed: give more examples, or a larger held_fraction"
        )
    if gain.low >= thresholds.min_gain:
        return None
    return (
        f"{gain.domain}: gained {_nats(gain.mean)} (with {thresholds.confidence:.0%} confidence at least "
        f"{_nats(gain.low)}); at least {_nats(thresholds.min_gain)} is asked"
    )


def _why_forgotten(kept: Retention, thresholds: GateThresholds) -> str | None:
    best = kept.best
    too_few = not best.measured and _is_finite(kept)
    if too_few or -best.low <= thresholds.max_forgetting:
        return None
    before = kept.champion.before - best.before
    spent = (
        f". {_nats(before)} of that were lost before this job; where that loss is wanted, `everlearn replay accept` "
        "lets the best begin anew"
        if before >= 0.0005
        else ""
    )
    return (
        f"{best.domain}: forgot {_nats(-best.mean)} from its best, {kept.version} (with {thresholds.confidence:.0%} "
        f"confidence at most {_nats(-best.low)}); at most {_nats(thresholds.max_forgetting)} is allowed{spent}"
    )


def _why_unmeasured(change: Change) -> str | None:
    if change.measured:
        return None
    return (
        f"{change.domain}: cannot be measured: {change.documents} held-out documents are kept of it, at least "
        f"{MIN_DOCUMENTS} are needed"
    )


def _is_finite(kept: Retention) -> bool:
    return math.isfinite(kept.best.candidate)


def _nats(value: float) -> str:
    return f"{value:.4f} nats per token"


def _plain_retention(kept: Retention) -> dict[str, Any]:
    best = _plain(kept.best)
    return _plain(kept.champion) | {
        "forgetting": _finite(-kept.champion.mean),
        "measured": kept.best.measured,
        "best": {
            "version": kept.version,
            "begins": kept.begins,
            "nats": _finite(kept.best.before),
            "forgetting": _finite(-kept.best.mean),
            "low": best["low"],
            "high": best["high"],
        },
    }


def _plain(change: Change) -> dict[str, Any]:
    plain = {key: _finite(value) for key, value in asdict(change).items()}
    plain["champion"] = plain.pop("before")
    return plain


def _finite(value: Any) -> Any:
    """JSON has no infinity: null says that there is no number."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
