"""The one relational database: connection, transactions, and migration to the newest schema on opening.

SQLite in WAL mode by default, PostgreSQL by URL. What is in it, ``everlearn.registry.tables`` says.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from everlearn.errors import ConfigError, Corrupt, InvalidInput, Unavailable
from everlearn.privacy import create_private, make_private
from everlearn.settings import FOLDERS, Settings

# The newest migration. Comparing with it spares every start the import of Alembic.
SCHEMA = "0009"
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
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):  # a database that was made without a locale gives bytes otherwise
        options["connect_args"] = {"client_encoding": "utf8"}
    return options


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
