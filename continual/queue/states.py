"""A job: its states, its row, the lease on it, and its events.

A job is ``queued``, then ``running`` under a lease, then ``succeeded``, ``failed`` or ``cancelled`` for good; meanwhile
it may be ``paused``. What may be done to a job is in ``jobs``. The gateway imports this: nothing heavy here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, insert, select

from continual.queue.files import Client, owned
from everlearn.errors import EverlearnError, NotFound
from everlearn.registry.tables import JobEventRow, JobRow

State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
Verdict = Literal["go", "pause", "cancel", "lost"]
UNFINISHED: tuple[State, ...] = ("queued", "running", "paused")
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
KEY_ENDED = "key_not_valid"
"""The code of a job's error whose key was revoked, or expired, before the job was over."""


class LeaseLost(EverlearnError):
    """The job was cancelled, or is another worker's by now: what this one writes is not taken."""

    code = "lease_lost"
    status = 409


@dataclass(frozen=True)
class Lease:
    """The right to work on a job until it is recovered. ``Lease(**request)`` in the process that does the work."""

    job_id: str
    fence: int
    owner: str


@dataclass(frozen=True)
class Job:
    """A row of the table. ``recipe`` is a resolved ContinualRecipe, ``request`` what the client said besides."""

    id: str
    key_id: str | None
    model: str
    state: State
    attempt: int
    lease_owner: str | None
    lease_until: float | None
    beats: int
    fence: int
    recipe: dict[str, Any]
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    request: dict[str, Any]
    idempotency_key: str | None
    cancel_requested_at: float | None
    pause_requested_at: float | None
    progress: dict[str, Any]
    error: dict[str, Any] | None
    report: dict[str, Any] | None
    result_model: str | None
    trained_tokens: int | None
    result_file: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; ``id`` grows."""

    id: int
    job_id: str
    at: float
    level: Level
    message: str
    data: dict[str, Any]


def is_unfinished() -> ColumnElement[bool]:
    return JobRow.state.in_(UNFINISHED)


def is_held_by(lease: Lease) -> ColumnElement[bool]:
    return and_(JobRow.id == lease.job_id, JobRow.fence == lease.fence, JobRow.state == "running")


def find_job(connection: Connection, where: ColumnElement[bool]) -> Job | None:
    row = connection.execute(select(JobRow.__table__).where(where)).first()
    return to_job(row) if row else None


def require_job(connection: Connection, job_id: str, client: Client | None = None) -> Job:
    job = find_job(connection, and_(JobRow.id == job_id, owned(JobRow.key_id, client)))
    if job is None:
        raise NotFound(f"there is no fine-tuning job {job_id[:80]!r}", param="fine_tuning_job_id")
    return job


def to_job(row: Any) -> Job:
    return Job(**cast("Mapping[str, Any]", row._mapping))


def add_event(
    connection: Connection,
    job_id: str,
    message: str,
    data: Mapping[str, Any] | None = None,
    level: Level = "info",
) -> None:
    values = {
        "job_id": job_id,
        "at": time.time(),
        "level": level,
        "message": message.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # a child's last words may hold any
        "data": dict(data or {}),
    }
    connection.execute(insert(JobEventRow).values(values))
