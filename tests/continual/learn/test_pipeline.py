"""Whole jobs on a tiny real model: what is learned is promoted, what is worse is refused, and nothing is left over."""

from __future__ import annotations

from tests.continual.learn.conftest import Home, recipe, sentences


def test_a_job_teaches_something_new_and_is_promoted(home: Home) -> None:
    job = home.run(home.submit(sentences("zor"), recipe()))
    assert (job.state, job.result_model) == ("succeeded", "tiny@2"), job.error
    assert job.report and job.report["outcome"] == "promoted"
    gate = job.report["gates"]["float"]
    print(gate)
    assert gate["gain"]["low"] > 0.5
    assert home.registry.aliases("tiny")["champion"] == 2
    version = home.registry.resolve("tiny")
    assert version.parent_digest == home.registry.resolve("tiny@1").digest
    assert {row[0] for row in home.buffer()} == {"tales", "base"}
    assert not (home.settings.home / "jobs" / job.id).exists()
