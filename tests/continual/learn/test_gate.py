"""The gate on scores of known distributions: what passes, what does not, and how sure it is."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from continual.learn.gate import Earlier, Scores, Verdict, compare, judge
from continual.recipe import GateThresholds

THRESHOLDS = GateThresholds(min_gain=0.01, max_forgetting=0.05, confidence=0.9, resamples=1000)


def pair(change: float, spread: float = 0.02, documents: int = 64, seed: int = 0) -> tuple[Scores, Scores]:
    """A champion and a candidate that is better by ``change`` nats per token, give or take ``spread``."""
    random = np.random.default_rng(seed)
    tokens = random.integers(50, 200, documents)
    before = random.normal(3.0, 0.5, documents)
    after = before - change - random.normal(0, spread, documents)
    sizes = tuple(int(n) for n in tokens)
    return Scores(tuple(before * tokens), sizes), Scores(tuple(after * tokens), sizes)


def earlier(before: Scores, after: Scores, best: Scores | None = None) -> Earlier:
    return Earlier(best or before, before, after, version="tiny@1")


def verdict(gain: float, **forgetting: float) -> Verdict:
    kept = {name: earlier(*pair(-change)) for name, change in forgetting.items()}
    return judge("new", pair(gain), kept, THRESHOLDS, seed=0)


def worse(scores: Scores, nats: float) -> Scores:
    """Each document by about so many nats per token."""
    random = np.random.default_rng(round(1000 * nats))
    each = np.array(scores.tokens) * random.normal(nats, 0.02, len(scores.tokens))
    return Scores(tuple(np.array(scores.nll) + each), scores.tokens)


def test_a_candidate_that_gains_and_forgets_little_passes() -> None:
    passed = verdict(0.3, old=0.01, general=-0.1)
    assert passed.passed and not passed.reasons
    assert passed.gain.low < passed.gain.mean < passed.gain.high
    assert passed.gain.mean == pytest.approx(0.3, abs=0.01)


def test_a_candidate_that_gains_nothing_is_refused() -> None:
    refused = verdict(0.0)
    assert not refused.passed
    assert refused.reasons[0].startswith("new: gained")


def test_forgetting_one_of_many_domains_is_refused_and_named() -> None:
    refused = verdict(1.0, a=0.0, b=0.2, c=-0.1)
    assert [reason.split(":")[0] for reason in refused.reasons] == ["b"]


def test_a_change_whose_bound_is_too_wide_is_not_accepted() -> None:
    """The mean is within the threshold; with four noisy documents nobody can say so."""
    noisy = pair(-0.03, spread=0.3, documents=4, seed=5)
    refused = judge("new", pair(0.3), {"old": earlier(*noisy)}, THRESHOLDS, seed=0)
    assert -refused.kept[0].best.mean < THRESHOLDS.max_forgetting < -refused.kept[0].best.low
    assert not refused.passed


def test_the_pairing_sees_a_small_change_below_a_large_spread_between_documents() -> None:
    """Documents differ by half a nat, the models by 0.02: unpaired bounds would be five times as wide."""
    change = compare("d", *pair(0.02, spread=0.001), THRESHOLDS, seed=0)
    assert 0.019 < change.low < change.high < 0.021


def test_the_bounds_hold_the_truth_as_often_as_they_say() -> None:
    held = [
        compare("d", *pair(0.1, spread=0.2, seed=seed), THRESHOLDS, seed=seed).low <= 0.1
        for seed in range(300)
    ]
    assert 0.84 < np.mean(held) < 0.95


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_whose_likelihood_is_no_number_is_refused(broken: float) -> None:
    before, after = pair(0.5)
    worse = Scores((broken, *after.nll[1:]), after.tokens)
    refused = judge("new", (before, worse), {"old": earlier(before, worse)}, THRESHOLDS, seed=0)
    assert len(refused.reasons) == 2
    assert json.loads(json.dumps(refused.report(), allow_nan=False))["gain"]["candidate"] is None


def test_the_budget_is_against_the_best_and_not_against_the_champion_before() -> None:
    """The champion lost 0.04 before: of the 0.05 that are allowed, another 0.03 are too much."""
    best, _ = pair(0.0)
    champion = worse(best, 0.04)
    candidate = Scores(tuple(np.array(champion.nll) + 0.03 * np.array(champion.tokens)), champion.tokens)
    refused = judge("new", pair(1.0), {"old": earlier(champion, candidate, best)}, THRESHOLDS, seed=0)
    (kept,) = refused.kept
    assert -kept.champion.low < THRESHOLDS.max_forgetting < -kept.best.mean
    (reason,) = refused.reasons
    assert re.match(r"old: forgot 0\.0[67]", reason) and "from its best, tiny@1" in reason
    assert re.search(r"0\.0[34]\d+ nats per token of that were lost before this job", reason)
    assert "`everlearn replay accept`" in reason
    (plain,) = refused.report()["kept"]
    assert plain["forgetting"] == pytest.approx(0.03, abs=1e-6)
    assert plain["best"]["forgetting"] == pytest.approx(0.07, abs=0.01)
    assert plain["best"]["version"] == "tiny@1"


@pytest.mark.parametrize("documents", [0, 1, 3])
def test_a_domain_that_cannot_be_measured_is_refused_unless_the_recipe_allows_it(documents: int) -> None:
    before, after = pair(0.0, documents=documents)
    few = {"old": earlier(before, after)}
    refused = judge("new", pair(1.0), few, THRESHOLDS, seed=0)
    (reason,) = refused.reasons
    assert reason.startswith(
        f"old: cannot be measured: {documents} held-out documents are kept of it, at least 4"
    )
    assert "gate.unmeasured: allow" in reason and not refused.warnings
    allowed = judge("new", pair(1.0), few, THRESHOLDS.model_copy(update={"unmeasured": "allow"}), seed=0)
    assert allowed.passed
    (warning,) = allowed.report()["warnings"]
    assert warning.startswith(f"old: cannot be measured: {documents} held-out documents")
    assert warning.endswith("The recipe lets it pass unmeasured")
    assert allowed.report()["kept"][0]["measured"] is False


def test_no_number_on_a_domain_of_few_documents_is_refused_whatever_the_recipe_allows() -> None:
    before, after = pair(0.0, documents=3)
    broken = Scores((float("nan"), *after.nll[1:]), after.tokens)
    allowing = THRESHOLDS.model_copy(update={"unmeasured": "allow"})
    assert not judge("new", pair(1.0), {"old": earlier(before, broken)}, allowing, seed=0).passed


def test_too_few_documents_of_the_new_domain_are_refused() -> None:
    refused = judge("new", pair(1.0, documents=3), {}, THRESHOLDS, seed=0)
    assert "held_fraction" in refused.reasons[0]


def test_the_same_scores_give_the_same_report() -> None:
    assert verdict(0.1, old=0.04).report() == verdict(0.1, old=0.04).report()


def test_models_scored_on_different_documents_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different documents"):
        judge("new", (pair(0.1)[0], pair(0.1, documents=8)[1]), {}, THRESHOLDS, seed=0)
