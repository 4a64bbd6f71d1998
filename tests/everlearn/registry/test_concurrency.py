"""Many processes and threads at once."""

import multiprocessing
import os
import threading
from typing import Any

import pytest
from sqlalchemy import text

from everlearn.errors import EverlearnError
from everlearn.registry.database import open_database, write
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

fork = multiprocessing.get_context("fork")


def run_all(processes: list[Any]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_fifty_processes_that_register_at_once_get_versions_without_a_gap(
    registry: Registry, fill_bundle: Any
) -> None:
    settings = registry.settings
    registry.database.dispose()
    barrier = fork.Barrier(50)

    def register(number: int) -> None:
        barrier.wait(60)
        mine = Registry(settings)
        with mine.staging() as staging:
            fill_bundle(staging, salt=f"{number}", format="onnx")
            mine.add(staging, "tiny")

    run_all([fork.Process(target=register, args=(number,)) for number in range(50)])
    versions = registry.versions("tiny")
    assert [version.version for version in versions] == list(range(50, 0, -1))
    assert len({version.digest for version in versions}) == 50
    assert registry.aliases("tiny") == {"champion": 1}


def test_threads_that_register_and_promote_leave_one_champion_and_its_predecessor(
    registry: Registry, fill_bundle: Any
) -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            with registry.staging() as staging:
                fill_bundle(staging, salt=f"{number}", format="onnx")
                version = registry.add(staging, "tiny")
            registry.promote(version.ref)
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(version.version for version in registry.versions("tiny")) == list(range(1, 17))
    aliases = registry.aliases("tiny")
    assert aliases.keys() == {"champion", "previous"}
    assert aliases["champion"] != aliases["previous"]


def test_collection_beside_additions_never_removes_a_live_bundle(
    registry: Registry, fill_bundle: Any
) -> None:
    """The same few bundles are added and deleted again and again while others collect."""
    settings = registry.settings
    registry.database.dispose()

    def churn(number: int) -> None:
        mine = Registry(settings)
        for turn in range(6):
            with mine.staging() as staging:
                fill_bundle(staging, salt=f"{number} {turn}")
                version = mine.add(staging, f"m{number}")
            copy = mine.add(mine.path(version), "shared")  # the same digest under a second name
            mine.path(version)
            mine.delete(version.ref)
            mine.path(copy)
            if turn % 2:
                mine.delete(copy.ref)

    def collect() -> None:
        mine = Registry(settings)
        for _ in range(15):
            mine.collect()

    run_all(
        [
            *(fork.Process(target=churn, args=(n,)) for n in range(4)),
            *(fork.Process(target=collect) for _ in "ab"),
        ]
    )
    for version in registry.versions("shared"):
        registry.verify(version)
    assert len(registry.versions("shared")) == 4 * 3


def test_processes_that_start_together_migrate_once(settings: Settings) -> None:
    barrier = fork.Barrier(8)

    def start() -> None:
        barrier.wait(30)
        open_database(settings)

    run_all([fork.Process(target=start) for _ in range(8)])


@pytest.mark.postgres
def test_processes_that_start_together_migrate_postgresql_once(settings: Settings, postgres_url: str) -> None:
    barrier = fork.Barrier(8)
    shared = settings.model_copy(update={"database_url": postgres_url})

    def start() -> None:
        barrier.wait(30)  # each on a home of its own: the lock on a file does not help
        open_database(shared.model_copy(update={"home": settings.home / str(os.getpid())}))

    run_all([fork.Process(target=start) for _ in range(8)])


def test_a_reader_is_not_held_up_by_a_writer(settings: Settings, add: Any) -> None:
    registry = Registry(settings)
    add(registry)
    with write(registry.database):
        done = threading.Event()
        reader = threading.Thread(target=lambda: (registry.resolve("tiny"), done.set()))
        reader.start()
        assert done.wait(5)


def test_a_failed_transaction_leaves_nothing_and_blocks_nobody(registry: Registry, add: Any) -> None:
    add(registry)
    with pytest.raises(EverlearnError), write(registry.database) as connection:
        connection.execute(text("DELETE FROM versions"))
        raise EverlearnError("no")
    assert add(registry).version == 2
