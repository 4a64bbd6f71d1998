"""The buffer against a model of it in a dictionary, through any order of what can happen to it."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings as profile
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import update

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
from everlearn.registry.database import open_database, read, write
from everlearn.registry.tables import ReplayExampleRow
from everlearn.settings import Settings
from train.data.store import Example

LIMITS = {"train": 60, "held": 25}


def example(number: int) -> Example:
    ids = np.full(3 + number % 9, number, dtype=np.int32)
    return Example(ids, np.arange(len(ids)) > 0)


ALL = {content_sha256(example(number)): example(number) for number in range(60)}


@cache
def empty_database() -> bytes:
    """A migrated database file: migrating one for each example would take all the time."""
    with tempfile.TemporaryDirectory() as folder:
        open_database(Settings(home=Path(folder))).dispose()
        return Path(folder, "everlearn.db").read_bytes()


class Buffer(RuleBasedStateMachine):
    """``rows``: sha256 to domain, by split. Crash and reopen must change nothing; corruption loses one row."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        Path(self.folder.name, "everlearn.db").write_bytes(empty_database())
        self.rows: dict[str, dict[str, str]] = {"train": {}, "held": {}}
        self.corrupt: set[str] = set()
        self.deleted: set[str] = set()
        self.jobs: set[str] = set()
        self.reopen()

    def teardown(self) -> None:
        self.database.dispose()
        self.folder.cleanup()

    @rule()
    def reopen(self) -> None:
        if hasattr(self, "database"):
            self.database.dispose()
        self.database = open_database(Settings(home=Path(self.folder.name)))

    @rule(
        job=st.sampled_from("abcdefgh"),
        domain=st.sampled_from("xy"),
        split=st.sampled_from(["train", "held"]),
        numbers=st.lists(st.integers(0, 59), max_size=12),
        crash=st.booleans(),
    )
    def insert(self, job: str, domain: str, split: str, numbers: list[int], crash: bool) -> None:
        arrival = Arrival(domain, split, [example(number) for number in numbers], LIMITS[split])  # type: ignore[arg-type]
        try:
            with write(self.database) as connection:
                insert_examples(connection, "m", job, domain, [arrival])
                if crash:
                    raise InterruptedError
        except InterruptedError:
            return
        if job not in self.jobs:
            self.jobs.add(job)
            self._insert(domain, split, numbers)

    def _insert(self, domain: str, split: str, numbers: list[int]) -> None:
        other = self.rows["held" if split == "train" else "train"]
        for number in numbers:
            sha256 = content_sha256(example(number))
            if sha256 not in self.deleted and sha256 not in other:
                self.rows[split].setdefault(sha256, domain)  # one of another domain stays there
        total = count = 0
        least = MIN_DOCUMENTS if split == "held" else 0
        for sha256 in sorted(self.rows[split], key=lambda one: (priority(one), one)):
            if self.rows[split][sha256] == domain:
                if total >= LIMITS[split] and count >= least:
                    del self.rows[split][sha256]
                    self.corrupt.discard(sha256)
                total += len(ALL[sha256])
                count += 1

    @rule(number=st.integers(0, 59))
    def delete(self, number: int) -> None:
        sha256 = content_sha256(example(number))
        with write(self.database) as connection:
            removed = delete_example(connection, "m", sha256)
        assert removed == sum(rows.pop(sha256, None) is not None for rows in self.rows.values())
        self.deleted.add(sha256)
        self.corrupt.discard(sha256)

    @rule(place=st.integers(0, 200))
    def rot(self, place: int) -> None:
        there = sorted(self.rows["train"])
        if there:
            sha256 = there[place % len(there)]
            row = (ReplayExampleRow.sha256 == sha256) & (ReplayExampleRow.split == "train")
            with write(self.database) as connection:
                connection.execute(update(ReplayExampleRow).where(row).values(content={"ids": [1]}))
            self.corrupt.add(sha256)

    @rule(domain=st.sampled_from("xy"), tokens=st.integers(0, 80), seed=st.integers(0, 3))
    def draw(self, domain: str, tokens: int, seed: int) -> None:
        with read(self.database) as connection:
            drawn = sample(connection, "m", domain, tokens, seed)
        there = {sha for sha, its in self.rows["train"].items() if its == domain and sha not in self.corrupt}
        assert {one.sha256 for one in drawn.kept} <= there
        assert drawn.tokens >= min(tokens, sum(len(ALL[sha256]) for sha256 in there))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        with read(self.database) as connection:
            found = {split: read_buffer(connection, "m", split) for split in ("train", "held")}  # type: ignore[arg-type]
            tokens = sizes(connection, "m")
        for split, reading in found.items():
            expected = {sha: its for sha, its in self.rows[split].items() if sha not in self.corrupt}
            assert {one.sha256: one.domain for one in reading.kept} == expected
            assert set(reading.corrupt) == (self.corrupt if split == "train" else set())
            for one in reading.kept:
                assert one.example.ids.tolist() == ALL[one.sha256].ids.tolist()
        for domain in tokens.values():
            assert all(count < LIMITS[split] + 11 + MIN_DOCUMENTS * 3 for split, count in domain.items())


TestBuffer = Buffer.TestCase
TestBuffer.settings = profile(max_examples=12, stateful_step_count=25, deadline=None)
