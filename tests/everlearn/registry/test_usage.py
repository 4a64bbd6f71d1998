import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import InvalidInput
from everlearn.registry.database import open_database, read, write
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from everlearn.registry.usage import Count, Spot, add_usage, budgeted_tokens, day_of, month_days, sum_usage
from everlearn.settings import Settings


def test_several_writers_add_to_the_same_rows_and_lose_nothing(registry: Registry) -> None:
    drawn = random.Random(0)
    shares = [
        {Spot("2026-11-25", drawn.choice("ab"), drawn.choice("mn")): Count(1, 1, 2, 3) for _ in range(3)}
        for _ in range(40)
    ]

    def add(share: dict[Spot, Count]) -> None:
        with write(registry.database) as connection:
            add_usage(connection, share)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, shares))
    expected = Counter(spot.key_id for share in shares for spot in share)
    found = {used.what: used for used in sum_usage(registry.database, "2026-11-25", "2026-11-25")}
    assert {what: used.requests for what, used in found.items()} == expected
    assert {used.completion_tokens for used in found.values()} == {3 * count for count in expected.values()}


def test_sums_are_by_key_model_or_day_within_the_days_asked_for(registry: Registry) -> None:
    db = registry.database
    _, key = create_key(db, "laptop", tokens_per_month=100)
    counts = {
        Spot("2026-10-31", key.id, "m"): Count(1, 0, 1000, 0),
        Spot("2026-11-01", key.id, "m"): Count(1, 0, 10, 1),
        Spot("2026-11-30", key.id, "n"): Count(2, 1, 20, 2),
        Spot("2026-11-30", "", "m"): Count(4, 0, 40, 4),
        Spot("2026-12-01", key.id, "m"): Count(1, 0, 1000, 0),
    }
    with write(db) as connection:
        add_usage(connection, counts)
    november = month_days("2026-11")
    assert november == ("2026-11-01", "2026-11-30")
    by_key, by_model, by_day = (sum_usage(db, *november, by) for by in ("key", "model", "day"))
    assert [(used.what, used.name, used.requests, used.failed) for used in by_key] == [
        ("", None, 4, 0), (key.id, "laptop", 3, 1),
    ]  # fmt: skip
    assert [(used.what, used.prompt_tokens) for used in by_model] == [("m", 50), ("n", 20)]
    assert [(used.what, used.completion_tokens) for used in by_day] == [("2026-11-01", 1), ("2026-11-30", 6)]
    with read(db) as connection:
        assert budgeted_tokens(connection, "2026-11") == {key.id: 33}
        assert budgeted_tokens(connection, "2025-02") == {}


@pytest.mark.parametrize(
    ("month", "last"), [("2028-02", "2028-02-29"), ("2026-12", "2026-12-31"), ("2026-1", "2026-01-31")]
)
def test_a_month_has_its_days(month: str, last: str) -> None:
    assert month_days(month)[1] == last


@pytest.mark.parametrize("month", ["2026-13", "november", "2026", "", "2026-11-01"])
def test_a_text_that_is_no_month_is_refused(month: str) -> None:
    with pytest.raises(InvalidInput, match="is not a month"):
        month_days(month)


def test_the_command_prints_a_table_csv_and_json(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(settings.home))
    db = open_database(settings)
    _, key = create_key(db, "lap,top", tokens_per_month=7)
    with write(db) as connection:
        add_usage(connection, {Spot(day_of(time.time()), key.id, "m"): Count(3, 1, 20, 2)})
        add_usage(connection, {Spot("2026-01-02", "", "m"): Count(1, 0, 1, 1)})

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["usage", *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    assert "lap,top" in run() and "20" in run()
    assert run("--csv") == (
        "key,name,requests,failed,prompt_tokens,completion_tokens\n" + f'{key.id},"lap,top",3,1,20,2\n'
    )
    (january,) = json.loads(run("--month", "2026-01", "--json"))
    assert january["name"] == "(without a key)"
    since = ("--since", "2026-01-01", "--until", "2026-01-31")
    assert run(*since, "--by", "day", "--csv").splitlines()[1] == "2026-01-02,1,0,1,1"
    for wrong in (("--until", "2026-01-01"), ("--since", "1.1."), ("--month", "2026-01", *since)):
        run(*wrong, code=2)
    listed = CliRunner().invoke(app, ["keys", "ls", "--json"]).stdout
    assert json.loads(listed)[0]["tokens_per_month"] == 7


def test_a_budget_is_given_by_the_command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(settings.home))
    given = CliRunner().invoke(app, ["keys", "create", "ci", "--tokens-per-month", "5000", "--json"])
    assert json.loads(given.stdout)["tokens_per_month"] == 5000
    assert "5000" in CliRunner().invoke(app, ["keys", "ls"]).stdout
    assert CliRunner().invoke(app, ["keys", "create", "ci", "--tokens-per-month", "0"]).exit_code == 2
