"""`everlearn lineage`: from a version back to what made it, and from a file to the versions that learnt from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from typer.testing import Result

from continual.lineage import lineage, trace
from continual.queue.files import Client
from everlearn.bundles.bundle import write_bundle
from everlearn.errors import NotFound
from everlearn.registry.database import write
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Version
from everlearn.registry.tables import ReplayExampleRow
from tests.continual.queue.conftest import Installation

GATE = {
    "passed": True,
    "gain": {"domain": "rfc", "mean": 0.5, "champion": 3.0, "candidate": 2.5, "documents": 9, "low": 0.4},
    "kept": [{"domain": "general", "forgetting": 0.004}],
}


@pytest.fixture
def run(command: Callable[..., Result]) -> Callable[..., Result]:
    return partial(command, "lineage")


def made(installation: Installation, parent: Version, recipe: dict[str, Any], salt: str) -> Version:
    registry = installation.registry
    with registry.staging() as staging:
        (staging / "config.json").write_text(json.dumps({"salt": salt}))
        about: dict[str, Any] = {"format": "onnx", "task": "generate", "architecture": "x", "parameters": 1}
        write_bundle(staging, name="tiny", parent=parent.digest, recipe=recipe, **about)
        return registry.add(staging, "tiny")


@pytest.fixture
def taught(installation: Installation) -> dict[str, Version]:
    """tiny@1, float weights that a job taught, what it served of them, and a later compression of that."""
    _, key = create_key(installation.jobs.database, "the team", train=True)
    client = Client(key.id)
    file = installation.files.add(installation.settings.home / "rfc.jsonl", client=client)
    first = installation.registry.resolve("tiny@1")
    job = installation.create(training_file=file.id, client=client)
    lease = installation.jobs.claim(job.id, "one")
    assert lease
    weights = made(installation, first, {"continual": {}, "domain": "rfc"}, "weights")
    served = made(installation, weights, {"export": {"to": "int4-onnx", "weights": "rtn"}}, "served")
    report = {"domain": "rfc", "gates": {"float": GATE}}
    installation.jobs.finish(lease, "succeeded", report=report, result_model=served.ref, trained_tokens=1234)
    later = made(installation, weights, {"export": {"to": "int8-onnx"}}, "later")
    with write(installation.jobs.database) as connection:
        row = {"model": "tiny", "sha256": "0" * 64, "split": "train", "domain": "rfc", "job_id": job.id,
               "tokens": 1, "priority": 0.5, "content": {}}  # fmt: skip
        connection.execute(insert(ReplayExampleRow).values(row))
    return {"first": first, "weights": weights, "served": served, "later": later}


def test_a_version_is_told_back_to_the_first_with_its_job_files_and_gate(
    installation: Installation, taught: dict[str, Version], run: Callable[..., Result]
) -> None:
    line = lineage(installation.registry, taught["served"].ref)
    assert [one.ref for one in line] == [taught[name].ref for name in ("served", "weights", "first")]
    assert [one.made_by for one in line][:2] == ["compress", "job"]
    lessons = [one.lesson for one in line]
    assert lessons[0] and lessons[0] == lessons[1] and lessons[2] is None
    (file,) = lessons[0].files
    assert (file.role, file.name, file.sha256) == ("training", "rfc.jsonl", installation.file.sha256)
    assert (lessons[0].domain, lessons[0].trained_tokens, lessons[0].key) == ("rfc", 1234, "the team")
    shown = run(taught["served"].ref)
    assert shown.exit_code == 0, shown.output
    for told in (
        "compress: int4-onnx rtn",
        "rfc.jsonl (sha256",
        "1,234 tokens",
        "gained 0.5000",
        "0.0040 of 1",
    ):
        assert told in shown.stdout
    assert json.loads(run("tiny@1", "--json").stdout)[0]["ref"] == "tiny@1"


def test_a_file_is_followed_to_all_that_was_made_of_it(
    installation: Installation, taught: dict[str, Version], run: Callable[..., Result]
) -> None:
    failed = installation.create()
    lease = installation.jobs.claim(failed.id, "one")
    assert lease
    installation.jobs.finish(lease, "failed", error={"code": "x", "message": "y"})
    found = trace(installation.registry, installation.file.sha256)
    assert [lesson.state for lesson in found.lessons] == ["succeeded", "failed"]
    why = {one.ref: one.why for one in found.versions}
    assert set(why) == {taught[name].ref for name in ("weights", "served", "later")}
    job = found.lessons[0].job
    assert why[taught["served"].ref] == why[taught["weights"].ref] == f"trained on it: {job}"
    assert why[taught["later"].ref] == f"made of {taught['weights'].ref}"
    assert found.replayed == {"tiny": 1}
    by_path = run("--learnt-from", str(installation.settings.home / "rfc.jsonl"), "--json").stdout
    (file,) = found.lessons[0].files
    installation.files.delete(file.id)
    by_id = run("--learnt-from", file.id, "--json").stdout
    deleted = json.loads(by_id)
    assert deleted["lessons"][0]["files"][0]["deleted"]
    assert json.loads(by_path)["versions"] == deleted["versions"]
    shown = run("--learnt-from", installation.file.sha256).stdout
    assert "holds 1 examples" in shown and "deleted: rfc.jsonl" in shown


def test_what_is_not_known_is_refused(
    installation: Installation, run: Callable[..., Result], tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no job and no recipe"):
        trace(installation.registry, "0" * 64)
    for arguments, why in (
        (("--learnt-from", "nowhere.txt"), "is no file of this machine"),
        (("--learnt-from", "file-0"), "there is no file"),
        ((), "one of the two"),
        (("tiny", "--learnt-from", "file-0"), "one of the two"),
        (("unknown",), "unknown"),
    ):
        refused = run(*arguments)
        assert refused.exit_code and why in refused.stderr, arguments
    unused = installation.files.add(_written(tmp_path / "a.jsonl"))
    assert trace(installation.registry, unused.sha256).versions == ()
    assert "No version learnt from it" in run("--learnt-from", unused.id).stdout


def _written(path: Path) -> Path:
    path.write_text('{"text": "another"}\n' * 9)
    return path
