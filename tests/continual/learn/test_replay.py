"""The buffer on a real database: uniform, bounded, once each, and safe from what corrupts or comes back."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scipy.stats import chisquare
from sqlalchemy import Engine, select, update

from continual.learn.replay import (
    Arrival,
    delete_example,
    insert_examples,
    read_buffer,
    sample,
    sizes,
)
from continual.learn.reservoir import content_sha256, priority
from continual.recipe import MIN_DOCUMENTS
from everlearn.registry.audit import list_acts
from everlearn.registry.database import open_database, read, write
from everlearn.registry.tables import ReplayExampleRow
from everlearn.settings import Settings
from train.data.store import Example

MODEL = "tiny"


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def example(number: int, tokens: int = 10) -> Example:
    """A different one for each number; half of its tokens are targets."""
    ids = np.arange(tokens, dtype=np.int32) + number * 1000
    return Example(ids, np.arange(tokens) % 2 == 1)


def examples(numbers: Sequence[int], tokens: int = 10) -> list[Example]:
    return [example(number, tokens) for number in numbers]


def put(
    database: Engine,
    job: str,
    given: Sequence[Example],
    limit: int = 10**9,
    domain: str = "d",
    split: str = "train",
) -> dict:
    arrival = Arrival(domain, split, given, limit)  # type: ignore[arg-type]
    with write(database) as connection:
        return insert_examples(connection, MODEL, job, domain, [arrival])


def kept(database: Engine, domain: str | None = None, split: str = "train") -> list[str]:
    with read(database) as connection:
        return [one.sha256 for one in read_buffer(connection, MODEL, split, domain).kept]  # type: ignore[arg-type]


def test_inserted_examples_are_read_as_they_were_inserted(database: Engine) -> None:
    given = [example(3), Example(np.array([7], np.int32), np.array([True])), example(5, 4)]
    put(database, "j1", given)
    with read(database) as connection:
        found = {one.sha256: one for one in read_buffer(connection, MODEL, "train").kept}
    for one in given:
        back = found[content_sha256(one)].example
        assert back.ids.tolist() == one.ids.tolist() and back.ids.dtype == np.int32
        assert back.mask[1:].tolist() == one.mask[1:].tolist() and not back.mask[0]


def test_the_order_of_insertion_decides_nothing(settings: Settings, database: Engine) -> None:
    """Also not how the examples are spread over jobs, nor that one comes twice."""
    put(database, "all", examples(range(60)), limit=100)
    other = open_database(settings.model_copy(update={"home": settings.home / "other"}))
    order = np.random.default_rng(0).permutation(60).tolist()
    stream = [*order, *order[:20]]
    for start in range(0, len(stream), 7):
        put(other, f"j{start}", examples(stream[start : start + 7]), limit=100)
    assert kept(database) == kept(other)
    assert len(kept(database)) == 10


def test_the_buffer_is_a_uniform_sample_of_all_that_was_ever_inserted(settings: Settings) -> None:
    """Early and late comers are as likely to stay: chi-square over where in the stream an example came."""
    counts: Counter[int] = Counter()
    with write(open_database(settings)) as connection:
        for stream in range(60):
            numbers, domain = range(stream * 40, stream * 40 + 40), f"d{stream}"
            for part in (numbers[:20], numbers[20:]):
                arrival = Arrival(domain, "train", examples(part), 100)
                insert_examples(connection, MODEL, f"{domain}-{part[0]}", domain, [arrival])
            place = {content_sha256(example(number)): number % 40 for number in numbers}
            reading = read_buffer(connection, MODEL, "train", domain)
            counts.update(place[one.sha256] for one in reading.kept)
    observed = [counts[place] for place in range(40)]
    assert sum(observed) == 60 * 10
    assert chisquare(observed).pvalue > 0.001
    assert chisquare([sum(observed[:20]), sum(observed[20:])]).pvalue > 0.001


def test_a_domain_is_bounded_in_tokens_and_others_are_left_alone(database: Engine) -> None:
    put(database, "j1", examples(range(5)), domain="small")
    put(database, "j2", examples(range(100, 400), tokens=8), limit=100, domain="flood")
    with read(database) as connection:
        tokens = sizes(connection, MODEL)
    assert tokens["small"] == {"train": 50}
    assert 100 <= tokens["flood"]["train"] < 108


def test_one_job_inserts_once(database: Engine) -> None:
    first = put(database, "j1", examples(range(5)))
    assert put(database, "j1", examples(range(5, 10))) == first
    assert len(kept(database)) == 5


def test_an_example_is_kept_once_and_never_in_both_splits(database: Engine) -> None:
    put(database, "j1", examples(range(4)), split="held")
    put(database, "j2", examples(range(6)))
    put(database, "j3", examples(range(8)), domain="e")
    held, train = kept(database, split="held"), kept(database)
    assert (len(held), len(train), len(set(train))) == (4, 4, 4)
    assert not set(held) & set(train)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"ids": [content["ids"][0] ^ 1, *content["ids"][1:]]},
        lambda content: content | {"ids": content["ids"][:-1]},
        lambda content: content | {"targets": []},
        lambda content: {},
        lambda content: {"ids": "no", "targets": 3},
        lambda content: content | {"ids": [2**40]},
    ],
)
def test_a_row_that_is_not_what_was_written_is_skipped_and_counted(database: Engine, damage) -> None:
    put(database, "j1", examples(range(6)))
    broken = kept(database)[2]
    mine = (ReplayExampleRow.model == MODEL) & (ReplayExampleRow.sha256 == broken)
    with write(database) as connection:
        content = connection.scalar(select(ReplayExampleRow.content).where(mine))
        connection.execute(update(ReplayExampleRow).where(mine).values(content=damage(content)))
    with read(database) as connection:
        reading = sample(connection, MODEL, "d", 10**9, seed=0)
    assert reading.corrupt == [broken]
    assert len(reading.kept) == 5 and broken not in [one.sha256 for one in reading.kept]


def test_a_deleted_example_stays_deleted_when_it_comes_again(settings: Settings, database: Engine) -> None:
    put(database, "j1", examples(range(6)))
    gone = content_sha256(example(3))
    with write(database) as connection:
        assert delete_example(connection, MODEL, gone) == 1
        assert delete_example(connection, MODEL, gone) == 0
    assert [act.detail for act in list_acts(database)] == [{"sha256": gone, "rows": rows} for rows in (0, 1)]
    database.dispose()
    again = open_database(settings)
    put(again, "j2", examples(range(8)))
    assert len(kept(again)) == 7 and gone not in kept(again)
    with read(again) as connection:
        rows = connection.execute(
            select(ReplayExampleRow.content).where(ReplayExampleRow.sha256 == gone)
        ).all()
    assert [row.content for row in rows] == [{}]


def put_held(database: Engine, job: str, documents: dict[str, range], limit: int) -> dict[str, int]:
    """Examples of 10 tokens of each document; returns how many of each are held then."""
    given = [(example(number), name) for name, numbers in documents.items() for number in numbers]
    arrival = Arrival("d", "held", [one for one, _ in given], limit, [name for _, name in given])
    with write(database) as connection:
        insert_examples(connection, MODEL, job, "d", [arrival])
        return dict(Counter(one.document for one in read_buffer(connection, MODEL, "held").kept))


def test_every_document_has_a_held_out_example_before_any_has_two(database: Engine) -> None:
    """One document has a hundred times as many examples as the others."""
    found = put_held(database, "j1", {"long": range(100), "b": range(100, 101), "c": range(101, 103)}, 40)
    assert found in ({"long": 2, "b": 1, "c": 1}, {"long": 1, "b": 1, "c": 2})
    later = put_held(database, "j2", {"d": range(200, 240), "e": range(300, 301)}, 40)
    assert len(later) >= 4 and max(later.values()) == 1


def test_held_out_examples_are_of_enough_documents_however_long_they_are(database: Engine) -> None:
    documents = {name: range(start, start + 20) for start, name in enumerate("abcdef", 1)}
    documents = {name: range(100 * n, 100 * n + 20) for n, name in enumerate(documents)}
    assert put_held(database, "j1", documents, limit=1) == dict.fromkeys(
        put_held(database, "j2", documents, limit=1), 1
    )
    with read(database) as connection:
        assert len({one.document for one in read_buffer(connection, MODEL, "held").kept}) == MIN_DOCUMENTS


def test_an_example_of_which_the_document_was_not_written_down_is_its_own(database: Engine) -> None:
    put(database, "j1", examples(range(3)), split="held")
    with read(database) as connection:
        kept = read_buffer(connection, MODEL, "held").kept
    assert [one.document for one in kept] == [one.sha256 for one in kept]


def test_a_sample_is_what_its_seed_says_and_as_large_as_asked(database: Engine) -> None:
    put(database, "j1", examples(range(50)))
    with read(database) as connection:
        first, again, other = (sample(connection, MODEL, "d", 95, seed) for seed in (1, 1, 2))
    assert [one.sha256 for one in first.kept] == [one.sha256 for one in again.kept]
    assert [one.sha256 for one in first.kept] != [one.sha256 for one in other.kept]
    assert first.tokens == 100


def test_models_share_nothing(database: Engine) -> None:
    put(database, "j1", examples(range(3)))
    with read(database) as connection:
        assert read_buffer(connection, "other", "train").kept == []


def test_priorities_are_uniform() -> None:
    """Kolmogorov-Smirnov distance of a thousand of them from the uniform distribution."""
    values = np.sort([priority(content_sha256(example(number))) for number in range(1000)])
    assert np.abs(values - np.arange(1000) / 1000).max() < 0.052


KILLED = """
import os, sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from everlearn.registry.database import open_database, write
from everlearn.settings import Settings
from continual.learn.replay import Arrival, insert_examples
from tests.continual.learn.test_replay import examples
with write(open_database(Settings(home=Path({home!r})))) as connection:
    insert_examples(connection, "tiny", "j2", "d", [Arrival("d", "train", examples(range(5, 9)), 10**9)])
    os.kill(os.getpid(), 9)
"""


def test_a_kill_inside_an_insertion_leaves_nothing_of_it(
    settings: Settings, database: Engine, pytestconfig: pytest.Config
) -> None:
    put(database, "j1", examples(range(5)))
    code = KILLED.format(home=str(settings.home), root=str(pytestconfig.rootpath))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(kept(database)) == 5
    put(database, "j2", examples(range(5, 9)))
    assert len(kept(database)) == 9
