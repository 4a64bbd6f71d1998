"""The rows by which the gateway finds engines."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from everlearn.registry.database import open_database
from everlearn.registry.tables import ReplicaRow
from everlearn.settings import Settings
from serve import replicas


@pytest.fixture
def db(settings: Settings) -> Engine:
    return open_database(settings)


def announce(db: Engine, id: str = "rep-1", *, socket: Path, pid: int | None = None) -> None:
    replicas.announce(
        db, id=id, model="tiny", version=2, digest="d" * 64, kind="onnx", task="generate",
        url=replicas.unix_url(socket), pid=pid or os.getpid(),
    )  # fmt: skip


def age(db: Engine, seconds: float) -> None:
    with Session(db) as session, session.begin():
        session.execute(update(ReplicaRow).values(heartbeat_at=time.time() - seconds))


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_an_engine_takes_requests_from_its_first_heartbeat_on(db: Engine, tmp_path: Path) -> None:
    announce(db, socket=tmp_path / "a.sock")
    assert replicas.ready_replicas(db) == []
    assert replicas.heartbeat(db, "rep-1", context=2048)
    [row] = replicas.ready_replicas(db)
    assert (row.model, row.version, row.context, row.task) == ("tiny", 2, 2048, "generate")
    assert replicas.unix_path(row.url) == tmp_path / "a.sock"
    assert replicas.ready_replicas(db, model="other") == []


@pytest.mark.parametrize("state", ["starting", "draining", "stopped", "failed"])
def test_only_ready_engines_take_requests(db: Engine, tmp_path: Path, state: replicas.State) -> None:
    announce(db, socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "rep-1")
    replicas.set_state(db, "rep-1", state, error="why")
    assert replicas.ready_replicas(db) == []


def test_an_engine_unheard_of_takes_requests_only_while_there_is_no_other(db: Engine, tmp_path: Path) -> None:
    announce(db, "unheard", socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "unheard")
    age(db, replicas.FRESH_S + 1)
    assert [row.id for row in replicas.ready_replicas(db)] == ["unheard"]
    announce(db, "fresh", socket=tmp_path / "b.sock")
    replicas.heartbeat(db, "fresh")
    assert [row.id for row in replicas.ready_replicas(db)] == ["fresh"]
    assert replicas.absent_models(db) == {}


def test_an_engine_unheard_of_for_long_is_awaited(db: Engine, tmp_path: Path) -> None:
    announce(db, socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "rep-1")
    age(db, replicas.ABANDONED_S + 1)
    assert replicas.ready_replicas(db) == []
    assert replicas.absent_models(db) == {"tiny": "starting"}


def test_a_restart_replaces_the_row(db: Engine, tmp_path: Path) -> None:
    announce(db, socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "rep-1")
    announce(db, socket=tmp_path / "a.sock", pid=77)
    assert replicas.ready_replicas(db) == []
    replicas.heartbeat(db, "rep-1")
    assert [row.pid for row in replicas.ready_replicas(db)] == [77]


def test_a_heartbeat_without_a_row_says_so(db: Engine, tmp_path: Path) -> None:
    announce(db, socket=tmp_path / "a.sock")
    replicas.withdraw(db, "rep-1")
    assert not replicas.heartbeat(db, "rep-1")


def test_rows_are_cleared_whose_sockets_nobody_listens_on(db: Engine, tmp_path: Path) -> None:
    """Process ids tell nothing: an engine in another container has another one there, or somebody else's here."""
    with socket.socket(socket.AF_UNIX) as ended, socket.socket(socket.AF_UNIX) as listening:
        ended.bind(str(tmp_path / "dead.sock"))
        listening.bind(str(tmp_path / "alive.sock"))
        listening.listen(1)
        announce(db, "dead", socket=tmp_path / "dead.sock", pid=os.getpid())
        announce(db, "alive", socket=tmp_path / "alive.sock", pid=dead_pid())
        announce(db, "elsewhere", socket=tmp_path / "on-another-host.sock", pid=dead_pid())
        assert replicas.clear_stale(db) == ["dead"]
        assert (tmp_path / "alive.sock").exists() and not (tmp_path / "dead.sock").exists()
    age(db, replicas.ABANDONED_S + 1)
    assert sorted(replicas.clear_stale(db)) == ["alive", "elsewhere"]


def test_requests_are_handed_over_at_one_instant(db: Engine, tmp_path: Path) -> None:
    announce(db, "old", socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "old")
    announce(db, "new", socket=tmp_path / "b.sock")
    replicas.heartbeat(db, "new", state="starting")
    assert [row.id for row in replicas.ready_replicas(db)] == ["old"]
    assert replicas.hand_over(db, "new", "old")
    assert [row.id for row in replicas.ready_replicas(db)] == ["new"]


def test_nothing_is_handed_over_to_an_engine_without_a_row(db: Engine, tmp_path: Path) -> None:
    announce(db, "old", socket=tmp_path / "a.sock")
    replicas.heartbeat(db, "old")
    assert not replicas.hand_over(db, "new", "old")
    assert [row.id for row in replicas.ready_replicas(db)] == ["old"]
