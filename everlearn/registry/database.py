"""The one relational database: tables, connection, and migration to the newest schema on opening.

SQLite in WAL mode by default, PostgreSQL by URL. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    ForeignKey,
    Index,
    String,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from everlearn.errors import ConfigError, Corrupt, InvalidInput, Unavailable
from everlearn.privacy import create_private, make_private
from everlearn.settings import FOLDERS, Settings

# The newest migration. Comparing with it spares every start the import of Alembic.
SCHEMA = "0007"
# Names the advisory lock that everlearn's writers and migrations take on PostgreSQL.
POSTGRES_LOCK = 0x6576_6572
BUSY_TIMEOUT_S = 30
START_PATIENCE_S = 60
"""How long what runs for long waits at its start: a machine's or a cluster's parts start in any order."""
REPAIR = (
    "Stop everlearn, keep a copy of the file and its -wal, and put a backup in its place; or take out what can be "
    "read: sqlite3 everlearn.db .recover | sqlite3 new.db. Without either, move it away: everlearn begins a new one, "
    "and the models in the store can be imported again"
)

log = structlog.stdlib.get_logger("everlearn.database")


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
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None]
    result_model: Mapped[str | None] = mapped_column(String(128))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
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


def open_database(settings: Settings, patience_s: float = 0) -> Engine:
    """Connects and brings the schema up to date. ``patience_s``: how long a server of databases may still be starting.

    Raises Unavailable, ConfigError where the database is another program's or a newer everlearn's, and Corrupt,
    with what can be done, where its file is damaged.
    """
    until_s, pause_s = time.monotonic() + patience_s, 0.2
    while True:
        try:
            return _open(settings)
        except Unavailable as error:
            late = time.monotonic() + pause_s > until_s
            if late or settings.resolved_database_url().startswith("sqlite"):
                raise
            log.warning("waiting for the database", error=error.message, again_in_s=pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


def _open(settings: Settings) -> Engine:
    url = settings.resolved_database_url()
    settings.directory("run")
    try:
        engine = create_engine(url, **_options(url))
    except (ArgumentError, ImportError, ValueError) as error:  # not a URL, or a driver that is not installed
        raise ConfigError(f"database_url cannot be used: {error}", param="database_url") from None
    _refuse_impossible_text(engine)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
        _keep_private(engine)
    with _answering(engine):
        if _schema(engine) != SCHEMA:
            _migrate(engine, settings)
    return engine


@contextmanager
def read(engine: Engine) -> Generator[Connection]:
    """A transaction that reads one state of the database. Raises Unavailable."""
    with _answering(engine), engine.connect() as connection:
        yield connection


@contextmanager
def write(engine: Engine) -> Generator[Connection]:
    """A transaction that sees no other writer from its first statement to its commit. Raises Unavailable.

    Read, decide and write inside it without a race: SQLite gives it the write lock at BEGIN, PostgreSQL an
    advisory lock. Reads elsewhere go on meanwhile.
    """
    with (
        _answering(engine),
        engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection,
    ):
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": POSTGRES_LOCK})
        yield connection


@contextmanager
def _answering(engine: Engine) -> Generator[None]:
    try:
        yield
    except DBAPIError as error:
        if _is_damage(error.orig):
            raise Corrupt(f"the database {engine.url.database} is damaged: {error.orig}. {REPAIR}") from error
        if isinstance(error, OperationalError):
            raise Unavailable(f"the database {engine.url!r} does not answer: {error.orig}") from error
        raise


def _is_damage(error: object) -> bool:
    """Whether SQLite says that the file is none, is malformed, or lacks a table that its schema's number promises."""
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(error)


def flaw(engine: Engine) -> str | None:
    """What SQLite finds wrong when it looks at every page; None where all is well. Raises Corrupt, Unavailable."""
    if engine.dialect.name != "sqlite":
        return None
    with read(engine) as connection:
        found: str | None = connection.scalar(text("PRAGMA quick_check(1)"))
    return None if found == "ok" else found


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
    return {"pool_pre_ping": True}


def _refuse_impossible_text(engine: Engine) -> None:
    """What no row can hold cannot be looked for either: whoever asks hears that, instead of a fault of the database.

    What is written is checked where it comes in, by its field's name.
    """

    @event.listens_for(engine, "before_cursor_execute")
    def _(_: object, cursor: object, statement: str, parameters: Any, context: Any, *rest: object) -> None:
        if context is None or context.isinsert or context.isupdate:
            return
        for value in parameters.values() if isinstance(parameters, dict) else parameters:  # pyright: ignore
            if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
                raise InvalidInput(f"there is nothing of the name {value[:80]!r}: it is no text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions by itself; see below
        cursor = connection.cursor()
        write_ahead(cursor)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


def _keep_private(engine: Engine) -> None:
    """SQLite gives the files beside the database its own permissions, once they are made."""
    name = engine.url.database
    if not name or name == ":memory:" or name.startswith("file:"):
        return
    with suppress(OSError):  # connecting tells what is wrong
        create_private(Path(name))
    for beside in ("-wal", "-shm", "-journal"):
        make_private(Path(name + beside))


def write_ahead(cursor: sqlite3.Cursor) -> None:
    """Into WAL mode. For other processes that begin with the same new file SQLite does not wait here by itself."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _schema(engine: Engine) -> str | None:
    """The newest migration that was done; None in an empty database. Raises ConfigError in another program's."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":  # elsewhere another program's tables may be neighbours
            tables = set(
                connection.scalars(text("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
            )
            if tables and "alembic_version" not in tables:
                raise ConfigError(
                    f"{engine.url.database} is another program's database, which holds "
                    f"{', '.join(sorted(tables))[:200]}: use another home, or another database_url",
                    param="database_url",
                )
        try:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError as error:
            if "alembic_version" in str(error.orig):  # the table is not there: an empty database
                return None
            raise


def _migrate(engine: Engine, settings: Settings) -> None:
    from everlearn.registry.migrations import upgrade

    upgrade(engine, settings.directory("run") / "migrate.lock", POSTGRES_LOCK)
    for name in FOLDERS:
        make_private(settings.home / name)  # an earlier version left what is in them to the umask
