"""The `replicas` table: which engine process serves which version, where it listens, and in what state it is.

The supervisor writes rows; the gateway reads `ready_replicas` and routes by model name.
"""

import socket
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from sqlalchemy import Engine, Row, delete, select, update
from sqlalchemy.orm import Session

from everlearn.registry.database import write
from everlearn.registry.records import CHAMPION, TRIALS
from everlearn.registry.tables import AliasRow, ReplicaRow

State = Literal["starting", "ready", "draining", "standby", "stopped", "failed"]

FRESH_S = 10.0
"""A row whose last heartbeat is older than this is routed to only where its model has no fresher one."""

ABANDONED_S = 60.0
"""A row whose last heartbeat is older than this is not routed to, and cleared at the next start, whoever wrote it."""

UNIX_SCHEME = "http+unix://"


@dataclass(frozen=True)
class ReadyReplica:
    """One engine that takes requests now: those for its model's name, or as canary or shadow a ``share`` of them."""

    id: str
    model: str
    version: int
    digest: str
    kind: str
    task: str
    url: str
    pid: int | None
    context: int | None
    started_at: float
    role: str = CHAMPION
    share: float = 1.0


COLUMNS = [field.name for field in fields(ReadyReplica) if field.name != "share"]


def unix_url(path: Path) -> str:
    """The URL of an engine that listens on a unix socket: `http+unix://%2Frun%2Fengine.sock`."""
    return UNIX_SCHEME + quote(str(path), safe="")


def unix_path(url: str) -> Path | None:
    """The socket behind a `unix_url`, or None for a TCP address."""
    return Path(unquote(url.removeprefix(UNIX_SCHEME))) if url.startswith(UNIX_SCHEME) else None


def announce(
    db: Engine, *, id: str, model: str, version: int, digest: str, kind: str, task: str, url: str,
    pid: int | None, state: State = "starting", error: str | None = None, role: str = CHAMPION,
) -> None:  # fmt: skip
    """Write the row of an engine that was just started; a restart under the same id replaces its row.

    Without `pid` it is a version that never came so far, with the reason in `error`.
    """
    now = time.time()
    row = ReplicaRow(
        id=id, model=model, version=version, digest=digest, kind=kind, task=task, url=url, pid=pid,
        state=state, error=error, context=None, started_at=now, heartbeat_at=now, role=role,
    )  # fmt: skip
    with write(db) as connection, Session(connection) as session:
        session.merge(row)
        session.flush()


def set_state(db: Engine, id: str, state: State, *, error: str | None = None) -> None:
    """Move a replica to `state`, with the reason when it failed. Counts as a heartbeat."""
    with write(db) as connection, Session(connection) as session:
        session.execute(
            update(ReplicaRow)
            .where(ReplicaRow.id == id)
            .values(state=state, error=error, heartbeat_at=time.time())
        )


def heartbeat(db: Engine, id: str, *, context: int | None = None, state: State = "ready") -> bool:
    """The engine answered just now: it is in `state`, and holds at most `context` tokens per request.

    False when it has no row.
    """
    with write(db) as connection:
        result = connection.execute(
            update(ReplicaRow)
            .where(ReplicaRow.id == id)
            .values(state=state, error=None, context=context, heartbeat_at=time.time())
        )
        return result.rowcount > 0


def hand_over(db: Engine, new: str, old: str | None) -> bool:
    """In one step `new` takes requests and `old` takes none, so that every gateway sees either the one or the other.

    False, and nothing changed, when `new` has no row.
    """
    with write(db) as connection:
        ready = update(ReplicaRow).where(ReplicaRow.id == new)
        if not connection.execute(ready.values(state="ready", error=None, heartbeat_at=time.time())).rowcount:
            return False
        connection.execute(update(ReplicaRow).where(ReplicaRow.id == old).values(state="draining"))
        return True


def withdraw(db: Engine, id: str) -> None:
    """Remove the row of an engine that has stopped."""
    with write(db) as connection, Session(connection) as session:
        session.execute(delete(ReplicaRow).where(ReplicaRow.id == id))


def ready_replicas(db: Engine, *, model: str | None = None) -> list[ReadyReplica]:
    """The engines to route to, oldest first: in state ready and heard of within `FRESH_S` seconds.

    A machine that slept or stalled wakes up with rows that are all too old, and with engines that are well: so of a
    model without a fresh row those count that were heard of within `ABANDONED_S` seconds.
    """
    trial = (
        (AliasRow.model == ReplicaRow.model)
        & (AliasRow.alias == ReplicaRow.role)
        & ReplicaRow.role.in_(TRIALS)
    )
    query = (
        select(*(getattr(ReplicaRow, name) for name in COLUMNS), AliasRow.share, ReplicaRow.heartbeat_at)
        .join(AliasRow, trial, isouter=True)
        .where(ReplicaRow.state == "ready", ReplicaRow.heartbeat_at >= time.time() - ABANDONED_S)
        .order_by(ReplicaRow.started_at, ReplicaRow.id)
    )
    if model is not None:
        query = query.where(ReplicaRow.model == model)
    with db.connect() as connection:
        rows = connection.execute(query).all()
    since = time.time() - FRESH_S
    heard_of = {(row.model, row.role) for row in rows if row.heartbeat_at >= since}
    return [_ready(row) for row in rows if row.heartbeat_at >= since or (row.model, row.role) not in heard_of]


def _ready(row: Row[Any]) -> ReadyReplica:
    """A trial whose alias is gone has no share left."""
    share = 1.0 if row.role == CHAMPION else (row.share or 0.0)
    return ReadyReplica(**{name: getattr(row, name) for name in COLUMNS}, share=share)


def absent_models(db: Engine) -> dict[str, State]:
    """Models that should be served and whose engine is not ready: it is "starting" (again), or "failed" for good.

    One that was ready and has not been heard of for `ABANDONED_S` seconds counts as starting again.
    """
    unheard = (ReplicaRow.state == "ready") & (ReplicaRow.heartbeat_at < time.time() - ABANDONED_S)
    query = select(ReplicaRow.model, ReplicaRow.state).where(
        ReplicaRow.state.in_(("starting", "failed")) | unheard, ReplicaRow.role == CHAMPION
    )
    with db.connect() as connection:
        rows = sorted(tuple(row) for row in connection.execute(query))  # "failed" comes first
    return {model: "failed" if state == "failed" else "starting" for model, state in rows}


def clear_stale(db: Engine) -> list[str]:
    """Remove the rows that no living engine stands behind, and their sockets; returns their ids.

    A row goes when its unix socket lies on this host and nobody listens there, or when nobody has renewed it for
    `ABANDONED_S` seconds. Fresh rows of other hosts on a shared database stay.
    """
    abandoned_before = time.time() - ABANDONED_S
    with write(db) as connection, Session(connection) as session:
        stale = [
            row
            for row in session.scalars(select(ReplicaRow))
            if row.heartbeat_at < abandoned_before or _is_dead_here(row.url)
        ]
        for row in stale:
            if path := unix_path(row.url):
                path.unlink(missing_ok=True)
        ids = [row.id for row in stale]
        session.execute(delete(ReplicaRow).where(ReplicaRow.id.in_(ids)))
        return ids


def _is_dead_here(url: str) -> bool:
    """Whether the socket is here and refuses connections. Its process's id would mean nothing in another container."""
    path = unix_path(url)
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # it is not here, does not listen yet, or has too many clients to take this one
            return False
    return False
