"""The one transaction: everything of a promotion happens, or nothing, whoever comes in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from continual.learn.best import Best, Scored, recall
from continual.learn.plan import Plan, make_plan
from continual.learn.promote import ChampionMoved, MeasuredBundle, promote
from continual.learn.replay import Arrival
from continual.queue.files import RESULTS, File, Files
from continual.queue.states import Lease, LeaseLost
from everlearn.bundles.bundle import read_manifest, write_bundle
from everlearn.registry.audit import list_acts
from everlearn.registry.database import read
from everlearn.registry.registry import Version
from everlearn.registry.tables import BestScoreRow
from tests.continual.learn.conftest import Home, recipe, sentences
from train.data.store import Example

MASK = np.arange(8) > 0
FIGURES = File("file-figures", None, "figures.csv", RESULTS, 9, "0" * 64, 1.0, None)
ARRIVALS = [
    Arrival("tales", "train", [Example(np.arange(8, dtype=np.int32) + n, MASK) for n in range(9)], 500),
]
SCORED = [
    Scored("general", "g", 9, 20.0, Best("general", 19.0, 9, "tiny@1")),
    Scored("tales", "not in the buffer", 5, 1.0),
]


@pytest.fixture
def lease(home: Home) -> Lease:
    return home.submit(sentences("zor", count=8), recipe())


@pytest.fixture
def plan(home: Home) -> Plan:
    return make_plan(home.registry, home.settings, "tiny", "tales", recipe())


def bundle(home: Home, directory: Path, parent: str, salt: str = "") -> Path:
    """The model again, as if it had been trained."""
    shutil.copytree(home.registry.path(home.registry.resolve("tiny@1")), directory)
    config = json.loads((directory / "config.json").read_text()) | {"salt": salt}
    (directory / "config.json").write_text(json.dumps(config))
    manifest = read_manifest(directory)
    about = {"task": "generate", "architecture": manifest.architecture, "parameters": manifest.parameters}
    write_bundle(directory, name="tiny", format="safetensors", parent=parent, **about)  # type: ignore[arg-type]
    return directory


@pytest.fixture
def candidate(home: Home, plan: Plan, tmp_path: Path) -> Path:
    return bundle(home, tmp_path / "candidate", plan.parent_digest)


def state(home: Home) -> tuple[Any, ...]:
    """All that a refused promotion must leave as it was."""
    versions = [version.ref for version in home.registry.versions("tiny")]
    acts = [act.id for act in list_acts(home.registry.database)]
    with read(home.registry.database) as connection:
        remembered = connection.execute(select(BestScoreRow.__table__)).all()
    files = [file.id for file in Files(home.settings, home.registry.database).list()]
    return versions, home.registry.aliases("tiny"), home.buffer(), acts, remembered, files


def do(home: Home, lease: Lease, plan: Plan, candidate: Path, served: Path | None = None) -> Version:
    given = served and MeasuredBundle(served, SCORED)
    return promote(
        home.registry,
        lease,
        plan,
        MeasuredBundle(candidate, SCORED),
        given,
        ARRIVALS,
        {"told": 1},
        77,
        FIGURES,
    )


def memory(home: Home, ref: str) -> dict[str, Best]:
    with read(home.registry.database) as connection:
        return recall(connection, "tiny", home.registry.resolve(ref).digest)


def test_everything_happens_at_once(home: Home, lease: Lease, plan: Plan, candidate: Path) -> None:
    version = do(home, lease, plan, candidate)
    job = home.jobs.get(lease.job_id)
    assert version.ref == job.result_model == "tiny@2"
    assert (job.state, job.trained_tokens, job.result_file) == ("succeeded", 77, FIGURES.id)
    assert Files(home.settings).get(FIGURES.id) == FIGURES
    assert job.report and job.report["told"] == 1 and job.report["outcome"] == "promoted"
    assert job.report["inserted"]["tales/train"]["inserted"] == 9
    assert home.registry.aliases("tiny")["champion"] == 2
    assert len(home.buffer()) == 9
    assert memory(home, "tiny@2") == {"g": Best("general", 19.0, 9, "tiny@1")}
    (act,) = list_acts(home.registry.database)
    assert (act.actor, act.act, act.subject) == (f"job {lease.job_id}", "promote", "tiny@2")


@pytest.mark.parametrize("champion", [1, None])
def test_a_job_that_shall_not_promote_leaves_a_candidate(
    home: Home, lease: Lease, plan: Plan, candidate: Path, champion: int | None
) -> None:
    if champion:
        home.registry.promote("tiny@1")
    version = do(home, lease, plan.model_copy(update={"recipe": recipe(promote=False)}), candidate)
    job = home.jobs.get(lease.job_id)
    assert (job.state, job.result_model, version.ref) == ("succeeded", "tiny@2", "tiny@2")
    assert job.report and job.report["outcome"] == "candidate"
    aliases = home.registry.aliases("tiny")
    assert (aliases.get("champion"), aliases["candidate"]) == (champion, 2)
    assert not home.buffer()


def _stale(home: Home, lease: Lease) -> None:
    """Recovered, and claimed by another: the first worker wakes up and goes on."""
    home.jobs.retry(lease, "silent")
    home.claim(lease.job_id)


def _cancelled(home: Home, lease: Lease) -> None:
    home.jobs.cancel(lease.job_id)


@pytest.mark.parametrize("come_between", [_stale, _cancelled])
def test_a_lease_that_was_lost_changes_nothing(
    home: Home, lease: Lease, plan: Plan, candidate: Path, come_between: Callable[[Home, Lease], None]
) -> None:
    come_between(home, lease)
    before = state(home)
    with pytest.raises(LeaseLost):
        do(home, lease, plan, candidate)
    assert state(home) == before
    assert home.jobs.get(lease.job_id).state in ("running", "cancelled")


def test_a_champion_that_moved_meanwhile_is_not_replaced(
    home: Home, lease: Lease, plan: Plan, candidate: Path, tmp_path: Path
) -> None:
    home.registry.promote(
        home.registry.add(bundle(home, tmp_path / "b", plan.parent_digest, "x"), "tiny").ref
    )
    before = state(home)
    with pytest.raises(ChampionMoved, match="tiny@2"):
        do(home, lease, plan, candidate)
    assert state(home) == before


def test_weights_that_a_killed_promotion_registered_are_not_registered_twice(
    home: Home, lease: Lease, plan: Plan, candidate: Path, tmp_path: Path
) -> None:
    served = bundle(home, tmp_path / "served", read_manifest(candidate).digest, "served")
    code = (
        "import os, sys, json\n"
        "from pathlib import Path\n"
        "import continual.learn.promote as p\n"
        "from everlearn.settings import Settings\n"
        "from everlearn.registry.registry import Registry\n"
        "from continual.queue.files import File\n"
        "from continual.queue.states import Lease\n"
        "from continual.learn.plan import Plan\n"
        "said = json.loads(sys.argv[1])\n"
        "p.move_champion = lambda *_: os.kill(os.getpid(), 9)\n"
        "p.promote(Registry(Settings(home=Path(said['home']))), Lease(**said['lease']), Plan(**said['plan']),\n"
        "    p.MeasuredBundle(Path(said['candidate'])), p.MeasuredBundle(Path(said['served'])), [], {}, 1,\n"
        "    File(**said['figures']))\n"
    )
    said = {
        "home": str(home.settings.home),
        "lease": vars(lease),
        "plan": plan.model_dump(mode="json"),
        "figures": vars(FIGURES),
        "candidate": str(candidate),
        "served": str(served),
    }
    before = state(home)
    killed = subprocess.run([sys.executable, "-c", code, json.dumps(said)], check=False)
    assert killed.returncode == -9
    versions, *rest = state(home)
    assert versions == ["tiny@2", "tiny@1"]
    assert tuple(rest) == before[1:]
    assert do(home, lease, plan, candidate, served).ref == "tiny@3"
    assert [version.ref for version in home.registry.versions("tiny")] == ["tiny@3", "tiny@2", "tiny@1"]
    assert home.registry.resolve("tiny").parent_digest == home.registry.resolve("tiny@2").digest
    assert memory(home, "tiny@2") == memory(home, "tiny@3") == {"g": Best("general", 19.0, 9, "tiny@1")}


def test_a_kill_after_the_gates_memory_is_written_leaves_nothing_of_the_promotion(
    home: Home, lease: Lease, plan: Plan, candidate: Path
) -> None:
    before = state(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("continual.learn.promote.finish_within", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            do(home, lease, plan, candidate)
    assert state(home) == before
    assert do(home, lease, plan, candidate).ref == "tiny@2" and memory(home, "tiny@2")
