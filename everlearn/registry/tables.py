"""The tables of the one database, a class each. Times are seconds since 1970, UTC.

``everlearn.registry.migrations`` makes them; a test holds the two against each other.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class ModelRow(Table):
    """A name in the registry. ``last_version`` only grows, so that a version's number is never used twice."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[float] = mapped_column(default=time.time)
    last_version: Mapped[int] = mapped_column(default=0)


class VersionRow(Table):
    """One bundle under one name; ``bundle`` is its bundle.json."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    format: Mapped[str] = mapped_column(String(32))
    task: Mapped[str] = mapped_column(String(32))
    bundle: Mapped[dict[str, Any]]
    parent_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[float] = mapped_column(default=time.time)


class AliasRow(Table):
    """A movable name for a version of a model: champion, candidate, previous, or anyone's own.

    ``share``: of the model's requests, from 0 to 1, that a canary answers or that a shadow gets a copy of.
    """

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    share: Mapped[float | None]
    updated_at: Mapped[float] = mapped_column(default=time.time)


class ApiKey(Table):
    """A key, kept as the hash of its secret. ``models`` None means every model.

    ``admin``: may look at everything and administer the server. ``train``: may have models taught.
    ``tokens_per_month``: by calendar month, UTC. ``requests_in_flight`` None: as many as the setting says.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    models: Mapped[list[str] | None]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    tokens_per_month: Mapped[int | None] = mapped_column(BigInteger)
    requests_in_flight: Mapped[int | None]
    admin: Mapped[bool] = mapped_column(default=False)
    train: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class DoorRow(Table):
    """There is one row from the first key on, until the door is opened by an act of its own: requests need a key.

    Beside the keys, so that no key's end opens anything.
    """

    __tablename__ = "door"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    closed_at: Mapped[float] = mapped_column(default=time.time)


class UsageRow(Table):
    """What a key used of a model on one day, UTC. ``key_id`` empty: without a key."""

    __tablename__ = "usage"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class AuditRow(Table):
    """An administrative act, in order of ``id``: who (a key's id, or a user of this machine) did what to what."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(default=time.time)
    actor: Mapped[str] = mapped_column(String(128))
    act: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(255))
    detail: Mapped[dict[str, Any]]


class ReplicaRow(Table):
    """A running engine, written by the supervisor and read by the gateway.

    ``role``: champion (whatever serves a model's name), canary or shadow.
    """

    __tablename__ = "replicas"
    __table_args__ = (Index("replicas_state", "state"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    task: Mapped[str] = mapped_column(String(32))
    role: Mapped[str] = mapped_column(String(16), default="champion")
    url: Mapped[str]
    pid: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None]
    context: Mapped[int | None]
    started_at: Mapped[float] = mapped_column(default=time.time)
    heartbeat_at: Mapped[float] = mapped_column(default=time.time)


class FileRow(Table):
    """An uploaded file; its bytes are ``files/<id>`` under the home. ``key_id`` None: uploaded without a key."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]


class JobRow(Table):
    """A continual-training job. What this row says is true; a message in a queue is only a hint to look at it.

    ``fence`` grows with every claim and ``beats`` with every sign of life of whoever holds the lease;
    ``lease_until`` is for people to read, since clocks jump. ``idempotency_key`` is a hash of key and header.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_state", "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    model: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    beats: Mapped[int] = mapped_column(BigInteger, default=0)
    fence: Mapped[int] = mapped_column(default=0)
    recipe: Mapped[dict[str, Any]]
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    request: Mapped[dict[str, Any]]
    idempotency_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    cancel_requested_at: Mapped[float | None]
    pause_requested_at: Mapped[float | None]
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None]
    result_model: Mapped[str | None] = mapped_column(String(128))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_file: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=time.time)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class JobEventRow(Table):
    """What happened to a job, in order of ``id``."""

    __tablename__ = "job_events"
    __table_args__ = (Index("job_events_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float] = mapped_column(default=time.time)
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class WebhookEndpointRow(Table):
    """A URL of the operator's that is told how jobs end: all jobs, or with ``key_id`` those of one key.

    ``secret`` signs what is sent, so it is kept as it is; never log it, never show it again. ``disabled_at``: since
    when it is told nothing more, as it answered 410. ``answer``: what the last try came to, at ``answered_at``.
    """

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(String(128))
    key_id: Mapped[str | None] = mapped_column(String(32))
    events: Mapped[list[str]]
    created_at: Mapped[float] = mapped_column(default=time.time)
    disabled_at: Mapped[float | None]
    answered_at: Mapped[float | None]
    answer: Mapped[str | None] = mapped_column(Text)


class WebhookDeliveryRow(Table):
    """An event that one endpoint is told, written in the transaction that ended the job.

    ``state``: waiting, delivered or failed. ``tries`` grows with every claim, and so guards the row as a fence;
    ``due_at`` is when it may be claimed next.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("webhook_deliveries_due", "state", "due_at"),)

    event_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    type: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float]
    created_at: Mapped[float] = mapped_column(default=time.time)


class ReplayExampleRow(Table):
    """One kept example of a model's earlier domains; ``priority`` decides which ones stay.

    ``document`` is the hash of the document that it is a part of; None where that was not written down.
    """

    __tablename__ = "replay_examples"
    __table_args__ = (Index("replay_examples_priority", "model", "domain", "split", "priority"),)

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    split: Mapped[str] = mapped_column(String(8), primary_key=True)
    domain: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    document: Mapped[str | None] = mapped_column(String(64))
    tokens: Mapped[int]
    priority: Mapped[float]
    content: Mapped[dict[str, Any]]


class BestScoreRow(Table):
    """What the gate remembers of one held example, as of a promoted bundle: the best of its line on that domain so far.

    ``version`` is the one that scored ``nll`` nats over ``tokens`` targets: this bundle's, or one before it.
    """

    __tablename__ = "best_scores"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    domain: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(128))
    nll: Mapped[float]
    tokens: Mapped[int]
    at: Mapped[float] = mapped_column(default=time.time)


class ReplayInsertionRow(Table):
    """A job's one insertion into a model's replay buffer."""

    __tablename__ = "replay_insertions"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    domain: Mapped[str] = mapped_column(String(64))
    at: Mapped[float] = mapped_column(default=time.time)
    counts: Mapped[dict[str, Any]]


class BatchRow(Table):
    """Requests that a client handed in as a file. As with jobs, this row is the truth, and ``fence`` guards it.

    ``ending`` is the state that a batch being finalized goes to. ``errors``: what is wrong with its file.
    """

    __tablename__ = "batches"
    __table_args__ = (Index("batches_state", "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file: Mapped[str] = mapped_column(String(64))
    output_file: Mapped[str | None] = mapped_column(String(64))
    error_file: Mapped[str | None] = mapped_column(String(64))
    labels: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    ending: Mapped[str | None] = mapped_column(String(16))
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(default=0)
    beats: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)
    started_at: Mapped[float | None]
    finalizing_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]
    expires_at: Mapped[float]


class BatchAnswerRow(Table):
    """The answer to one line of a batch's file, until all are in: ``content`` is a line of the output file."""

    __tablename__ = "batch_answers"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    failed: Mapped[bool]
    content: Mapped[str] = mapped_column(Text)
