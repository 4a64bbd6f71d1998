"""`everlearn jobs show`: what the gate measured, as a person reads it."""

from __future__ import annotations

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner

from continual.learn.gate import judge
from everlearn.cli.commands import app
from everlearn.registry.database import open_database, write
from everlearn.registry.tables import JobRow
from everlearn.settings import Settings
from tests.continual.learn.test_gate import THRESHOLDS, earlier, pair, worse


@pytest.mark.parametrize("old", [False, True])
def test_a_job_shows_the_change_from_the_champion_and_from_the_best(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """Also of a report that an earlier everlearn wrote."""
    best, _ = pair(0.0)
    kept = {
        "tales": earlier(worse(best, 0.02), worse(best, 0.03), best),
        "old": earlier(*pair(0, documents=3)),
    }
    allowing = THRESHOLDS.model_copy(update={"unmeasured": "allow"})
    gate = judge("news", pair(0.4), kept, allowing, seed=0).report()
    if old:
        del gate["warnings"]
        for one in gate["kept"]:
            del one["best"], one["measured"]
    row = {
        "id": "ftjob-1", "model": "tiny", "state": "succeeded", "recipe": {"domain": "news"}, "seed": 1,
        "training_file": "file-1", "request": {}, "progress": {},
        "report": {"outcome": "promoted", "gates": {"float": gate}},
    }  # fmt: skip
    with write(open_database(settings)) as connection:
        connection.execute(insert(JobRow).values(row))
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(app, ["jobs", "show", "ftjob-1"])
    assert shown.exit_code == 0, shown.output
    title, header, *lines = shown.stdout.split("The gate as ")[1].splitlines()
    assert title == "float: passed; in nats per token" and header.split()[0] == "DOMAIN"
    table = {line.split()[0]: line.split() for line in lines}
    assert table["news"][-1] == f"{gate['gain']['low']:.4f}"
    if old:
        assert len(table["tales"]) == 6 and "warning:" not in table
    else:
        tales = gate["kept"][1]
        assert table["tales"][4:] == [
            f"{-tales['forgetting']:.4f}", f"{tales['best']['nats']:.4f}", "tiny@1",
            f"{-tales['best']['forgetting']:.4f}", f"{tales['best']['low']:.4f}",
        ]  # fmt: skip
        assert table["old"][1:3] == ["(too", "few)"]
        assert lines[-1].startswith("warning: old: cannot be measured: 3 held-out documents")
