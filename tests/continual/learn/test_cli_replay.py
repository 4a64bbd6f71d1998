"""`everlearn replay`: what a job left in the buffer, found and deleted by a person."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from everlearn.cli import app
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
def test_what_names_no_example_deletes_nothing(run: Callable[..., Result], prefix: str, said: str) -> None:
    refused = run("rm", "tiny", prefix)
    assert refused.exit_code != 0 and said in refused.stderr
