"""Batches and their states in the database, which is the truth about them.

A batch's row is claimed with a fence that every write of its runner must match; answers are kept by line, so that
whoever goes on with a batch leaves out what is answered. Nothing here is heavy: the gateway imports it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import structlog
from sqlalchemy import Connection, Engine, and_, delete, insert, or_, select, update

from continual.queue.files import BATCH, Client, owned, require_file
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.registry.audit import record
from everlearn.registry.database import open_database, read, write
from everlearn.registry.tables import BatchAnswerRow, BatchRow
from everlearn.settings import Settings

State = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
Ending = Literal["completed", "expired", "cancelled"]
WINDOW_S = 24 * 3600
PAGE_LINES = 500

log = structlog.stdlib.get_logger("serve.batches")


class LeaseLost(Conflict):
    """Another runner has the batch now, or it is over; nothing was written."""


@dataclass(frozen=True)
class Batch:
    """A row of the table."""

    id: str
    key_id: str | None
    endpoint: str
    input_file: str
    output_file: str | None
    error_file: str | None
    labels: dict[str, str]
    state: State
    ending: Ending | None
    errors: list[dict[str, Any]] | None
    total: int
    completed: int
    failed: int
    lease_owner: str | None
    fence: int
    beats: int
    created_at: float
    started_at: float | None
    finalizing_at: float | None
    finished_at: float | None
    cancel_requested_at: float | None
    expires_at: float


@dataclass(frozen=True)
class Lease:
    """The right to work on a batch."""

    batch_id: str
    fence: int


@dataclass(frozen=True)
class Answer:
    """What becomes of one line of the input: ``content`` is a line of the output file, or of the error file."""

    line: int
    failed: bool
    content: str


class Batches:
    """The batches of one installation. Everything that reaches the database may raise Unavailable."""

    def __init__(self, settings: Settings, database: Engine | None = None) -> None:
        self.settings = settings
        self.database = database or open_database(settings)

    # For clients -------------------------------------------------------------------------------------------

    def create(
        self, *, endpoint: str, input_file: str, labels: Mapping[str, str], client: Client | None = None
    ) -> Batch:
        """Create a batch. Raises NotFound, and InvalidInput where the file is for something else."""
        now = time.time()
        with write(self.database) as connection:
            file = require_file(connection, input_file, client, "input_file_id")
            if file.purpose != BATCH:
                raise InvalidInput(
                    f"{file.id} was uploaded for {file.purpose!r}; a batch's file is for {BATCH!r}",
                    param="input_file_id",
                )
            values = {
                "id": f"batch_{secrets.token_hex(12)}", "key_id": client.key_id if client else None,
                "endpoint": endpoint, "input_file": file.id, "labels": dict(labels), "state": "validating",
                "created_at": now, "expires_at": now + WINDOW_S,
            }  # fmt: skip
            connection.execute(insert(BatchRow).values(values))
            batch = _require(connection, values["id"])
        log.info("batch created", batch=batch.id, endpoint=endpoint)
        return batch

    def get(self, batch_id: str, *, client: Client | None = None) -> Batch:
        """Raises NotFound, also where it is another client's."""
        with read(self.database) as connection:
            return _require(connection, batch_id, client)

    def list(
        self, *, after: str | None = None, limit: int = 20, client: Client | None = None
    ) -> Sequence[Batch]:
        """From the newest to the oldest, those behind ``after``. Raises NotFound for an unknown ``after``."""
        with read(self.database) as connection:
            query = select(BatchRow.__table__).where(owned(BatchRow.key_id, client))
            if after is not None:
                last = _require(connection, after, client)
                same = and_(BatchRow.created_at == last.created_at, BatchRow.id < last.id)
                query = query.where(or_(BatchRow.created_at < last.created_at, same))
            query = query.order_by(BatchRow.created_at.desc(), BatchRow.id.desc()).limit(limit)
            return [_batch(row) for row in connection.execute(query)]

    def cancel(self, batch_id: str, *, client: Client | None = None) -> Batch:
        """Start no further request; answers so far are kept. Raises NotFound, and InvalidInput if the batch has ended."""
        with write(self.database) as connection:
            batch = _require(connection, batch_id, client)
            if batch.state in ("completed", "failed", "expired"):
                raise InvalidInput(f"{batch_id} is {batch.state} already and cannot be cancelled")
            if batch.state in ("validating", "in_progress"):
                asked = {"state": "cancelling", "cancel_requested_at": time.time()}
                connection.execute(update(BatchRow).where(BatchRow.id == batch_id).values(asked))
                record(connection, client and client.actor, "batch.cancel", batch_id, was=batch.state)
            return _require(connection, batch_id)

    # For the runner ----------------------------------------------------------------------------------------

    def open(self) -> Sequence[Batch]:
        """Those that are not over, the oldest first."""
        query = select(BatchRow.__table__).where(BatchRow.finished_at.is_(None))
        with read(self.database) as connection:
            rows = connection.execute(query.order_by(BatchRow.created_at, BatchRow.id))
            return [_batch(row) for row in rows]

    def claim(self, batch: Batch, owner: str) -> Lease | None:
        """The lease on a batch as it was seen; None where it has changed hands or given a sign of life since."""
        seen = and_(
            BatchRow.id == batch.id,
            BatchRow.fence == batch.fence,
            BatchRow.beats == batch.beats,
            BatchRow.finished_at.is_(None),
        )
        taken = {"fence": batch.fence + 1, "beats": batch.beats + 1, "lease_owner": owner}
        with write(self.database) as connection:
            if not connection.execute(update(BatchRow).where(seen).values(taken)).rowcount:
                return None
        return Lease(batch.id, batch.fence + 1)

    def beat(self, lease: Lease) -> Batch:
        """A sign of life; returns the batch as it is now. Raises LeaseLost."""
        return self._change(lease, beats=BatchRow.beats + 1)

    def begin(self, lease: Lease, total: int) -> Batch:
        """The file is in order: ``total`` requests are to be answered. Raises LeaseLost."""
        with write(self.database) as connection:
            batch = _held(connection, lease)
            values: dict[str, Any] = {"total": total, "started_at": time.time()}
            if batch.state == "validating":
                values["state"] = "in_progress"
            connection.execute(update(BatchRow).where(BatchRow.id == lease.batch_id).values(values))
            return _require(connection, lease.batch_id)

    def answered(self, batch_id: str) -> set[int]:
        """The lines that have their answer."""
        with read(self.database) as connection:
            return set(
                connection.scalars(select(BatchAnswerRow.line).where(BatchAnswerRow.batch_id == batch_id))
            )

    def save(self, lease: Lease, answers: Sequence[Answer]) -> None:
        """Keeps answers and counts them, in one transaction. Raises LeaseLost."""
        if not answers:
            return
        rows = [vars(answer) | {"batch_id": lease.batch_id} for answer in answers]
        failed = sum(answer.failed for answer in answers)
        with write(self.database) as connection:
            batch = _held(connection, lease)
            connection.execute(insert(BatchAnswerRow), rows)
            counts = {
                "completed": batch.completed + len(rows) - failed,
                "failed": batch.failed + failed,
                "beats": BatchRow.beats + 1,
            }
            connection.execute(update(BatchRow).where(BatchRow.id == lease.batch_id).values(counts))

    def contents(self, batch_id: str, *, failed: bool) -> Iterator[str]:
        """Lines for the output file, or for the error file, in the order of the input."""
        table, last = BatchAnswerRow, -1
        query = select(table.line, table.content).where(table.batch_id == batch_id, table.failed == failed)
        while True:
            with read(self.database) as connection:
                page = connection.execute(
                    query.where(table.line > last).order_by(table.line).limit(PAGE_LINES)
                ).all()
            if not page:
                return
            yield from (row.content for row in page)
            last = page[-1].line

    def finalize(self, lease: Lease, ending: Ending) -> Batch:
        """All that will be answered is answered. Raises LeaseLost."""
        return self._change(lease, state="finalizing", ending=ending, finalizing_at=time.time())

    def finish(self, lease: Lease, state: State, errors: Sequence[Mapping[str, Any]] | None = None) -> Batch:
        """Ends a batch; its answers are in files now. Raises LeaseLost."""
        with write(self.database) as connection:
            _held(connection, lease)
            connection.execute(delete(BatchAnswerRow).where(BatchAnswerRow.batch_id == lease.batch_id))
            ended = {"state": state, "finished_at": time.time(), "lease_owner": None}
            if errors is not None:
                ended["errors"] = [dict(error) for error in errors]
            connection.execute(update(BatchRow).where(BatchRow.id == lease.batch_id).values(ended))
            batch = _require(connection, lease.batch_id)
        log.info("batch ended", batch=batch.id, state=state, completed=batch.completed, failed=batch.failed)
        return batch

    def release(self, lease: Lease) -> None:
        """Leave a batch to the next runner. Raises LeaseLost."""
        self._change(lease, lease_owner=None)

    def _change(self, lease: Lease, **values: Any) -> Batch:
        with write(self.database) as connection:
            _held(connection, lease)
            connection.execute(update(BatchRow).where(BatchRow.id == lease.batch_id).values(values))
            return _require(connection, lease.batch_id)


def set_file(
    connection: Connection, lease: Lease, kind: Literal["output_file", "error_file"], file_id: str
) -> None:
    """Within the transaction that lists the file. Raises LeaseLost."""
    _held(connection, lease)
    connection.execute(update(BatchRow).where(BatchRow.id == lease.batch_id).values({kind: file_id}))


def _held(connection: Connection, lease: Lease) -> Batch:
    there = and_(BatchRow.id == lease.batch_id, BatchRow.fence == lease.fence, BatchRow.finished_at.is_(None))
    row = connection.execute(select(BatchRow.__table__).where(there)).first()
    if row is None:
        raise LeaseLost(f"the lease {lease.fence} on {lease.batch_id} is not valid any more")
    return _batch(row)


def _require(connection: Connection, batch_id: str, client: Client | None = None) -> Batch:
    there = and_(BatchRow.id == batch_id, owned(BatchRow.key_id, client))
    row = connection.execute(select(BatchRow.__table__).where(there)).first()
    if row is None:
        raise NotFound(f"there is no batch {batch_id[:80]!r}", param="batch_id")
    return _batch(row)


def _batch(row: Any) -> Batch:
    return Batch(**cast("Mapping[str, Any]", row._mapping))
