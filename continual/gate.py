"""The measured decision whether a candidate may become champion.

Champion and candidate are scored on the same documents. A paired bootstrap over documents (Efron 1979; for
language models Koehn, W04-3250) says how sure the difference of their mean negative log-likelihoods is: the
candidate must gain on the new domain, and must not lose on any earlier one, with the recipe's confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from continual.recipe import GateThresholds

MIN_DOCUMENTS = 4
"""With fewer documents a bootstrap's bounds mean nothing."""


@dataclass(frozen=True)
class Scores:
    """One model on one domain's held documents: the sum of -log p in nats, and the tokens it is over."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """From champion to candidate on one domain, in nats per token; ``mean`` > 0 is better.

    ``low`` and ``high`` are one-sided bounds of ``mean``, each with the recipe's confidence.
    """

    domain: str
    documents: int
    tokens: int
    champion: float
    candidate: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """``reasons`` say why not; empty, the candidate passed."""

    gain: Change
    kept: tuple[Change, ...]
    thresholds: GateThresholds
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons

    def report(self) -> dict[str, Any]:
        """As plain JSON. ``forgetting`` is the change turned round: above zero, the candidate got worse."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "thresholds": self.thresholds.model_dump(),
            "gain": _plain(self.gain),
            "kept": [_plain(change) | {"forgetting": _finite(-change.mean)} for change in self.kept],
        }


def judge(
    domain: str,
    new: tuple[Scores, Scores],
    earlier: Mapping[str, tuple[Scores, Scores]],
    thresholds: GateThresholds,
    seed: int,
) -> Verdict:
    """``new`` and each of ``earlier`` are (champion's scores, candidate's scores) of one domain.

    A domain with fewer than ``MIN_DOCUMENTS`` documents is reported, and refused where it is the new one.
    """
    gain = compare(domain, *new, thresholds, seed)
    kept = tuple(compare(name, *pair, thresholds, seed) for name, pair in sorted(earlier.items()))
    reasons = [_why_no_gain(gain, thresholds), *(_why_forgotten(change, thresholds) for change in kept)]
    return Verdict(gain, kept, thresholds, tuple(filter(None, reasons)))


def compare(
    domain: str, champion: Scores, candidate: Scores, thresholds: GateThresholds, seed: int
) -> Change:
    """Mean difference per token over the documents, with its bootstrap bounds."""
    tokens = np.array(champion.tokens, dtype=np.float64)  # (documents,)
    if candidate.tokens != champion.tokens:
        raise ValueError(f"{domain}: the two models were scored on different documents")
    before, after = np.array(champion.nll), np.array(candidate.nll)
    total = max(tokens.sum(), 1.0)
    low, high = _bounds(before - after, tokens, thresholds, seed)
    return Change(
        domain=domain,
        documents=len(tokens),
        tokens=int(tokens.sum()),
        champion=float(before.sum() / total),
        candidate=float(after.sum() / total),
        mean=float((before - after).sum() / total),
        low=low,
        high=high,
    )


def _bounds(
    differences: np.ndarray, tokens: np.ndarray, thresholds: GateThresholds, seed: int
) -> tuple[float, float]:
    """differences, tokens: (documents,). Resamples whole documents, since tokens of one are not independent."""
    count = len(tokens)
    if count < 2 or not np.isfinite(differences).all():
        return -math.inf, math.inf
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.multinomial(count, np.full(count, 1 / count), size=thresholds.resamples)
    means = (drawn @ differences) / np.maximum(drawn @ tokens, 1.0)  # (resamples,)
    low, high = np.quantile(means, [1 - thresholds.confidence, thresholds.confidence])
    return float(low), float(high)


def _why_no_gain(gain: Change, thresholds: GateThresholds) -> str | None:
    if gain.documents < MIN_DOCUMENTS:
        return (
            f"{gain.domain}: {gain.documents} held documents are too few to measure a gain on; at least "
            f"{MIN_DOCUMENTS} are needed: give more examples, or a larger held_fraction"
        )
    if gain.low >= thresholds.min_gain:
        return None
    return (
        f"{gain.domain}: gained {_nats(gain.mean)} (with {thresholds.confidence:.0%} confidence at least "
        f"{_nats(gain.low)}); at least {_nats(thresholds.min_gain)} is asked"
    )


def _why_forgotten(change: Change, thresholds: GateThresholds) -> str | None:
    too_few = change.documents < MIN_DOCUMENTS and math.isfinite(change.candidate)
    if too_few or -change.low <= thresholds.max_forgetting:
        return None
    return (
        f"{change.domain}: forgot {_nats(-change.mean)} (with {thresholds.confidence:.0%} confidence at "
        f"most {_nats(-change.low)}); at most {_nats(thresholds.max_forgetting)} is allowed"
    )


def _nats(value: float) -> str:
    return f"{value:.4f} nats a token"


def _plain(change: Change) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(change).items()}


def _finite(value: Any) -> Any:
    """JSON has no infinity: null says that there is no number."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
