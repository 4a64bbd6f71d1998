"""What the gate remembers, on a real database: twenty jobs with made-up scores, rollbacks, resets and deletions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, insert, select

from continual.learn.best import KEPT_BUNDLES, recall, remember, reset
from continual.learn.examine import NEW, Measured, verdict
from continual.learn.gate import Scores, Verdict
from continual.learn.plan import Plan
from continual.learn.replay import Arrival, delete_example, insert_examples, read_buffer
from continual.learn.reservoir import Held, content_sha256
from continual.recipe import GENERAL, ContinualRecipe
from everlearn.registry.audit import list_acts
from everlearn.registry.database import open_database, read, write
from everlearn.registry.tables import BestScoreRow, ModelRow, VersionRow
from everlearn.settings import Settings
from train.data.store import Example

MODEL, DOCUMENTS = "tiny", 16
RECIPE = ContinualRecipe.model_validate({"domain": "news", "gate": {"max_forgetting": 0.05}})


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def held(name: str, count: int = DOCUMENTS) -> list[Held]:
    """Examples of a domain, each a document of 50 targets."""
    found: list[Held] = []
    for number in range(count):
        ids = np.arange(51, dtype=np.int32) + number + 1000 * sum(name.encode())
        example = Example(ids, np.arange(51) > 0)
        found.append(Held(content_sha256(example), example, f"{name} {number}", 0.0))
    return found


def scores(of: list[Held], nats: float) -> Scores:
    """About ``nats`` per token, each document as hard for every model."""
    hard = [1 + int(one.sha256[:4], 16) / 65536 for one in of]
    return Scores(tuple(50 * (nats + each) for each in hard), (50,) * len(of))


@dataclass
class SimulatedModel:
    """A model whose levels on each domain are said: what a job measures, and what becomes of it."""

    database: Engine
    levels: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    champion: str = "v1"
    versions: int = 0

    def begin(self, **levels: float) -> None:
        """The first champion; its domains' held examples lie in the buffer."""
        self.add("v1", None, levels | {GENERAL: 3.0})
        with write(self.database) as connection:
            for name in levels:
                examples = [one.example for one in held(name)]
                documents = [one.document for one in held(name)]
                arrival = Arrival(name, "held", examples, 10**6, documents)
                insert_examples(connection, MODEL, f"job {name}", name, [arrival])

    def add(
        self, digest: str, parent: str | None, levels: dict[str, float], format: str = "safetensors"
    ) -> None:
        self.versions += 1
        self.levels[digest] = levels
        row = {"model": MODEL, "version": self.versions, "digest": digest, "format": format}
        more = {"task": "generate", "bundle": {}, "parent_digest": parent}
        with write(self.database) as connection:
            if self.versions == 1:
                connection.execute(insert(ModelRow).values(name=MODEL))
            connection.execute(insert(VersionRow).values(row | more))

    def ref(self, digest: str) -> str:
        return f"{MODEL}@{list(self.levels).index(digest) + 1}"

    def job(
        self, digest: str, gate: dict[str, Any] | None = None, count: int = DOCUMENTS, **change: float
    ) -> Verdict:
        """One job from the champion: it learns news, and changes the domains it names; promoted where it passes."""
        before = self.levels[self.champion]
        after = before | {name: before[name] + nats for name, nats in change.items()}
        recipe = RECIPE.model_copy(update={"gate": RECIPE.gate.model_copy(update=gate or {})})
        plan = Plan(
            model=MODEL, domain="news", champion=self.ref(self.champion), champion_digest=self.champion,
            parent=self.ref(self.champion), parent_digest=self.champion, recipe=recipe, threads=1,
        )  # fmt: skip
        with read(self.database) as connection:
            past = recall(connection, MODEL, self.champion)
            kept = read_buffer(connection, MODEL, "held").by_domain()
        memory = {sha256: list(vars(best).values()) for sha256, best in past.items()}
        earlier = {
            name: [Held(one.sha256, one.example, one.document, 0.0) for one in its]
            for name, its in kept.items()
        }
        measured = Measured({NEW: held(f"news {digest}")} | earlier | {GENERAL: held(GENERAL, count)})
        champion = {name: scores(its, before.get(name, 3.0)) for name, its in measured.held.items()}
        candidate = {name: scores(its, after.get(name, 2.0)) for name, its in measured.held.items()}
        decided, scored = verdict(plan, "float", measured, memory, champion, candidate)
        if decided.passed:
            self.add(digest, self.champion, after)
            with write(self.database) as connection:
                remember(connection, MODEL, digest, self.ref(digest), self.champion, scored)
            self.champion = digest
        return decided

    def best(self, name: str) -> tuple[float, set[str]]:
        """What is remembered for the champion: nats per token above the text's own difficulty, and whose it is."""
        with read(self.database) as connection:
            found = recall(connection, MODEL, self.champion)
        mine = [(sha256, best) for sha256, best in found.items() if best.domain == name]
        easy = [best.nll / best.tokens - 1 - int(sha256[:4], 16) / 65536 for sha256, best in mine]
        return float(np.mean(easy)), {best.version for _, best in mine}


@pytest.fixture
def model(database: Engine) -> SimulatedModel:
    model = SimulatedModel(database)
    model.begin(tales=2.0)
    return model


def forgotten(decided: Verdict, name: str = "tales") -> tuple[float, float]:
    """From the champion, and from the best."""
    (kept,) = [one for one in decided.kept if one.domain == name]
    return -kept.champion.mean, -kept.best.mean


def test_twenty_jobs_of_a_small_loss_each_are_refused_once_the_budget_from_the_best_is_spent(
    model: SimulatedModel,
) -> None:
    first, *rest = [model.job(f"j{n}", tales=0.035) for n in range(20)]
    assert first.passed and forgotten(first) == pytest.approx((0.035, 0.035))
    assert first.kept[1].begins and first.kept[1].version == "tiny@1"
    assert not any(one.passed for one in rest)
    for one in rest:
        assert forgotten(one) == pytest.approx((0.035, 0.070))
        assert one.kept[1].version == "tiny@1" and not one.kept[1].begins
        (reason,) = one.reasons
        assert "tales: forgot 0.0700 nats per token from its best, tiny@1" in reason
        assert "0.0350 nats per token of that were lost before this job" in reason
    assert model.levels[model.champion]["tales"] == pytest.approx(2.035)


def test_the_general_text_has_its_best_too(model: SimulatedModel) -> None:
    assert model.job("a", general=0.03).passed
    (reason,) = model.job("b", general=0.03).reasons
    assert reason.startswith("general: forgot 0.0600")


def test_a_better_score_moves_the_best(model: SimulatedModel) -> None:
    assert model.job("a", tales=-0.5).passed
    assert model.best("tales") == (pytest.approx(1.5), {"tiny@2"})
    assert model.job("b", tales=0.04).passed
    assert model.best("tales") == (pytest.approx(1.5), {"tiny@2"})
    assert not model.job("c", tales=0.04).passed
    assert model.job("d", tales=-0.04).passed
    assert model.job("e", tales=-0.01).passed
    assert model.best("tales") == (pytest.approx(1.49), {"tiny@5"})


def test_a_larger_budget_is_still_counted_from_the_best(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.04).passed
    assert model.job("b", gate={"max_forgetting": 0.1}, tales=0.04).passed
    assert not model.job("c", gate={"max_forgetting": 0.1}, tales=0.04).passed
    (reason,) = model.job("d", tales=-0.01).reasons  # the small budget is overdrawn, though this job mends
    assert "forgot 0.0700" in reason


def test_a_rollback_goes_back_to_what_was_best_then_and_forward_again(model: SimulatedModel) -> None:
    assert model.job("a", tales=-0.5).passed
    model.champion = "v1"  # rolled back: the half nat is gone, and nobody is held to it
    assert model.job("b", tales=0.03).passed
    assert not model.job("c", tales=0.03).passed
    model.champion = "a"
    assert model.best("tales") == (pytest.approx(1.5), {"tiny@2"})
    assert model.job("d", tales=0.03).passed and not model.job("e", tales=0.03).passed


def test_a_version_made_and_promoted_by_hand_is_held_to_what_it_was_made_from(model: SimulatedModel) -> None:
    assert model.job("a", tales=-0.5).passed
    model.add("by hand", "a", model.levels["a"] | {"tales": 1.7})
    model.champion = "by hand"
    (reason,) = model.job("b").reasons
    assert "tales: forgot 0.2000" in reason and "0.2000 nats per token of that were lost before" in reason


def test_another_model_under_the_same_name_begins_anew_and_says_so(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.04).passed
    model.add("imported", None, model.levels["a"])
    model.champion = "imported"
    decided = model.job("b", tales=0.04)
    assert decided.passed and all(kept.begins for kept in decided.kept)


def test_scores_of_the_served_bundle_are_never_compared_with_float_scores(model: SimulatedModel) -> None:
    """Quantized, all domains are 0.3 nats worse: that is no forgetting."""
    assert model.job("a").passed
    model.add("int8 of a", "a", model.levels["a"] | {"tales": 2.3}, format="onnx-genai")
    with read(model.database) as connection:
        assert recall(connection, MODEL, "a") and recall(connection, MODEL, "int8 of a") == {}


def test_a_loss_that_is_wanted_is_accepted_on_purpose_and_audited(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.04, general=0.04).passed
    assert not model.job("b", tales=0.04).passed
    with write(model.database) as connection:
        assert reset(connection, MODEL, ["tales"]) == DOCUMENTS
    (act,) = list_acts(model.database, 1)
    assert (act.act, act.subject) == ("best.reset", MODEL)
    assert act.detail == {"domains": ["tales"], "examples": DOCUMENTS}
    decided = model.job("c", tales=0.04)
    assert decided.passed and [kept.begins for kept in decided.kept] == [False, True]
    assert not model.job("d", general=0.04).passed  # the other domain's best was not touched
    assert not model.job("e", tales=0.04).passed


def test_a_best_that_is_reset_while_a_job_runs_stays_reset(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.04).passed
    before = model.levels["a"]
    with read(model.database) as connection:
        past = recall(connection, MODEL, "a")
    memory = {sha256: list(vars(best).values()) for sha256, best in past.items()}
    measured = Measured({NEW: held("news z"), "tales": held("tales"), GENERAL: held(GENERAL)})
    plan = Plan(
        model=MODEL, domain="news", champion="tiny@2", champion_digest="a", parent="tiny@2", parent_digest="a",
        recipe=RECIPE, threads=1,
    )  # fmt: skip
    champion = {name: scores(its, before.get(name, 3.0)) for name, its in measured.held.items()}
    after = before | {GENERAL: 3.01}
    candidate = {name: scores(its, after.get(name, 2.0)) for name, its in measured.held.items()}
    decided, scored = verdict(plan, "float", measured, memory, champion, candidate)
    assert decided.passed
    with write(model.database) as connection:
        reset(connection, MODEL, ["tales"])
    model.add("z", "a", after)
    with write(model.database) as connection:
        remember(connection, MODEL, "z", "tiny@3", "a", scored)
    model.champion = "z"
    assert model.best("tales") == (pytest.approx(2.04), {"tiny@3"})
    assert model.best(GENERAL) == (pytest.approx(3.0), {"tiny@2"})


def test_the_best_is_of_the_examples_that_remain(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.04).passed
    gone = held("tales")[0].sha256
    with write(model.database) as connection:
        delete_example(connection, MODEL, gone)
        assert gone not in recall(connection, MODEL, "a")
    assert model.best("tales") == (pytest.approx(2.0), {"tiny@1"})
    decided = model.job("b", tales=0.04)
    assert not decided.passed and forgotten(decided) == pytest.approx((0.04, 0.08))
    assert decided.kept[1].best.documents == DOCUMENTS - 1


def test_an_eviction_takes_the_memory_with_it(model: SimulatedModel) -> None:
    assert model.job("a").passed
    with write(model.database) as connection:
        insert_examples(connection, MODEL, "small", "tales", [Arrival("tales", "held", [], 51 * 6)])
        left = {one.sha256 for one in read_buffer(connection, MODEL, "held", "tales").kept}
        remembered = {
            sha256 for sha256, best in recall(connection, MODEL, "a").items() if best.domain == "tales"
        }
    assert len(left) == 6 and remembered == left


def test_examples_that_came_after_the_best_are_measured_from_the_champion_then(model: SimulatedModel) -> None:
    assert model.job("a", tales=0.03).passed
    more = held("tales", 2 * DOCUMENTS)[DOCUMENTS:]
    with write(model.database) as connection:
        arrival = Arrival(
            "tales", "held", [one.example for one in more], 10**6, [one.document for one in more]
        )
        insert_examples(connection, MODEL, "more", "tales", [arrival])
    decided = model.job("b", tales=0.03)
    assert forgotten(decided) == pytest.approx((0.03, 0.045))
    assert decided.kept[1].version == "tiny@1, tiny@2"


def test_a_job_that_measures_less_of_the_general_text_forgets_nothing_of_the_rest(
    model: SimulatedModel,
) -> None:
    assert model.job("a").passed
    assert model.job("b", count=8).passed
    with read(model.database) as connection:
        found = recall(connection, MODEL, "b").values()
    assert sum(best.domain == GENERAL for best in found) == DOCUMENTS


def test_the_memory_is_bounded(model: SimulatedModel) -> None:
    for number in range(KEPT_BUNDLES + 3):
        assert model.job(f"n{number}").passed
    with read(model.database) as connection:
        digests = connection.scalar(select(func.count(BestScoreRow.digest.distinct())))
        assert recall(connection, MODEL, model.champion)
    assert digests == KEPT_BUNDLES
