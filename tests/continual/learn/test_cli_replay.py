"""`everlearn replay`: what a job left in the buffer, found and deleted by a person."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from continual.learn.best import Scored, remember
from everlearn.cli.commands import app
from everlearn.registry.audit import list_acts
from everlearn.registry.database import write
from tests.continual.learn.conftest import Home, recipe, sentences


@pytest.fixture
def run(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name, value in home.settings.environment().items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, ["replay", *arguments])


def test_an_example_is_found_by_its_words_and_deleted_for_good(
    home: Home, run: Callable[..., Result]
) -> None:
    taught = recipe(domain="tales", epochs=1)
    assert home.run(home.submit(sentences("bramble", count=60), taught)).state == "succeeded"
    kept = json.loads(run("show", "tiny", "--json").stdout)
    assert set(kept) == {"base", "tales"} and kept["tales"]["train"] > kept["tales"]["held"] > 0

    (found,) = json.loads(run("ls", "tiny", "--contains", "Tale 7 bramble", "--json").stdout)
    assert found["domain"] == "tales" and "bramble" in found["text"]
    table = run("ls", "tiny", "--domain", "tales", "--limit", "3").stdout.splitlines()
    assert len(table) == 4 and all("bramble" in line for line in table[1:])

    removed = run("rm", "tiny", found["sha256"][:12])
    assert removed.exit_code == 0 and removed.stdout.strip() == "deleted 1 of tiny's examples"
    assert json.loads(run("ls", "tiny", "--contains", "Tale 7 bramble", "--json").stdout) == []
    assert home.run(home.submit(sentences("bramble", count=61), recipe(domain="more"))).is_over
    assert found["sha256"] not in {sha256 for _, _, sha256, tokens in home.buffer() if tokens}


@pytest.mark.parametrize(
    ("prefix", "said"), [("abc", "too short"), ("0123456789ab", "tiny keeps no 0123456789ab")]
)
def test_a_prefix_that_names_no_example_deletes_nothing(
    run: Callable[..., Result], prefix: str, said: str
) -> None:
    refused = run("rm", "tiny", prefix)
    assert refused.exit_code != 0 and said in refused.stderr


def test_the_best_that_is_remembered_is_shown_and_accepted_losses_are_audited(
    home: Home, run: Callable[..., Result]
) -> None:
    assert "Nothing is remembered of tiny's champion" in run("best", "tiny").stdout
    assert run("accept", "tiny", "tales").exit_code != 0
    digest = home.registry.resolve("tiny").digest
    with write(home.registry.database) as connection:
        scored = [Scored("general", name, 10, 20.0 + n) for n, name in enumerate("abcd")]
        remember(connection, "tiny", digest, "tiny@1", digest, scored)
    table = [line.split() for line in run("best", "tiny").stdout.splitlines()]
    assert table[1:] == [["general", "float", "2.1500", "tiny@1", "4"]]
    refused = run("accept", "tiny", "tales")
    assert "no best of tales is remembered for tiny; there is general" in refused.stderr
    accepted = run("accept", "tiny", "general")
    assert accepted.stdout.strip() == "tiny's next job begins anew with the best of general"
    assert json.loads(run("best", "tiny", "--json").stdout) == {"float": {}}
    (act,) = list_acts(home.registry.database, 1)
    assert (act.act, act.subject, act.detail["domains"]) == ("best.reset", "tiny", ["general"])
