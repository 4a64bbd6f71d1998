import contextlib
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from alembic import command as alembic
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text

from everlearn.doctor import examine
from everlearn.errors import ConfigError, Corrupt, EverlearnError, Unavailable
from everlearn.registry.database import SCHEMA, open_database, read, write, write_ahead
from everlearn.registry.keys import create_key, list_keys
from everlearn.registry.migrations import configuration
from everlearn.registry.registry import Registry
from everlearn.registry.tables import BestScoreRow, FileRow, ReplayExampleRow, Table
from everlearn.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[3]


def test_migrations_end_at_the_schema_that_the_tables_describe(registry: Registry) -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == SCHEMA
    with registry.database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == SCHEMA
        assert compare_metadata(context, Table.metadata) == []


@pytest.mark.parametrize("schema", ["0002", "0003", "0004", "0005", "0006"])
def test_a_buffer_of_any_earlier_version_is_kept_and_its_documents_are_unknown(
    settings: Settings, schema: str
) -> None:
    settings.directory("run")
    old = create_engine(settings.resolved_database_url())
    config = configuration()
    with old.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, schema)
        connection.execute(
            text(
                "INSERT INTO replay_examples (model, sha256, split, domain, job_id, tokens, priority, content)"
                " VALUES ('m', 's', 'held', 'd', 'j', 2, 0.5, '{\"ids\": [1, 2], \"targets\": [[1, 2]]}')"
            )
        )
    old.dispose()
    with read(open_database(settings)) as connection:
        (row,) = connection.execute(select(ReplayExampleRow.__table__)).all()
        assert (row.sha256, row.document, row.content["ids"]) == ("s", None, [1, 2])
        assert connection.execute(select(BestScoreRow.__table__)).all() == []


def test_sqlite_survives_a_power_cut_and_keeps_references(settings: Settings) -> None:
    with open_database(settings).connect() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_database_of_a_newer_everlearn_is_refused(registry: Registry) -> None:
    with registry.database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"'9999'.*newer version; upgrade everlearn"):
        open_database(registry.settings)


def test_opening_twice_keeps_what_is_there(registry: Registry, add: Any) -> None:
    add(registry)
    assert Registry(registry.settings).resolve("tiny").version == 1


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nonsense", ConfigError),
        ("oracle://x", ConfigError),
        ("nosuch+driver://x", ConfigError),
        ("sqlite:////proc/nowhere/x.db", Unavailable),
    ],
)
def test_a_database_that_cannot_be_had_is_one_clear_error(
    settings: Settings, url: str, error: type[EverlearnError]
) -> None:
    with pytest.raises(error):
        open_database(settings.model_copy(update={"database_url": url}))


def test_a_database_error_does_not_show_the_password(settings: Settings) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://me:s3cret@127.0.0.1:9/x?connect_timeout=1"
    with pytest.raises(Unavailable) as caught:
        open_database(settings.model_copy(update={"database_url": url}))
    assert "s3cret" not in caught.value.message


def test_a_database_that_is_locked_too_long_is_unavailable(
    settings: Settings, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(settings)
    add(registry)
    monkeypatch.setattr("everlearn.registry.database.BUSY_TIMEOUT_S", 0.1)
    impatient = Registry(settings)
    with write(registry.database), pytest.raises(Unavailable, match="database is locked"):
        impatient.promote("tiny")
    impatient.promote("tiny")


def test_the_switch_to_wal_waits_for_who_has_the_file(tmp_path: Path) -> None:
    """SQLite gives up at once where two connections switch at the same moment; so does one that may not wait."""
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN IMMEDIATE")
    ours = sqlite3.connect(tmp_path / "x.db", timeout=0, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        ours.execute("PRAGMA journal_mode=WAL")
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    write_ahead(ours.cursor())
    assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Files that are damaged, or not ours ----------------------------------------------------------------------------


@pytest.fixture
def filled(settings: Settings, add: Any) -> Path:
    """A closed database of some pages, and no WAL beside it."""
    registry = Registry(settings)
    add(registry)
    with write(registry.database) as connection:
        for number in range(200):
            values = {
                "id": f"f-{number}",
                "filename": "x" * 200,
                "purpose": "batch",
                "size_bytes": 1,
                "sha256": "0",
            }
            connection.execute(insert(FileRow).values(values))
    registry.database.dispose()
    file = settings.home / "everlearn.db"
    assert file.stat().st_size > 100_000 and not file.with_name("everlearn.db-wal").exists()
    return file


def use(settings: Settings) -> int:
    """Opens the database and reads all of a table."""
    with read(open_database(settings)) as connection:
        return len(connection.execute(select(FileRow.__table__)).all())


DAMAGES: dict[str, Any] = {
    "random bytes": lambda whole: random.Random(1).randbytes(20_000),
    "text": lambda whole: b"this is no database at all\n" * 100,
    "half of it": lambda whole: whole[: len(whole) // 2],
    "all but its last page": lambda whole: whole[:-4096],
    "its first page": lambda whole: whole[:4096],
    "a broken first page": lambda whole: whole[:100] + b"\xff" * 3996 + whole[4096:],
    "broken pages": lambda whole: whole[:4096] + b"\xff" * (len(whole) - 4096),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_refused_with_what_can_be_done(
    settings: Settings, filled: Path, damage: str
) -> None:
    filled.write_bytes(DAMAGES[damage](filled.read_bytes()))
    with pytest.raises(Corrupt, match=rf"^the database {re.escape(str(filled))} is damaged: .*\.recover"):
        use(settings)


def test_a_damaged_database_is_told_by_every_command_in_one_sentence(
    settings: Settings, filled: Path
) -> None:
    filled.write_bytes(b"no database" * 1000)
    for command in (["ls"], ["doctor"], ["keys", "ls"]):
        done = subprocess.run(
            [sys.executable, "-m", "everlearn", *command], capture_output=True, text=True, check=False,
            cwd=REPOSITORY, env=os.environ | settings.environment(),
        )  # fmt: skip
        assert done.returncode == 1 and "is damaged: file is not a database" in done.stdout + done.stderr, (
            done
        )
        assert "Traceback" not in done.stderr


def test_the_doctor_finds_damage_that_nothing_has_met_yet(settings: Settings, filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 2 WHERE name = 'audit'")
    assert use(settings) == 200
    (finding,) = [one for one in examine(settings) if one.check == "database"]
    assert finding.verdict == "bad" and re.search(r"is damaged: .*\.recover", finding.found, re.DOTALL), (
        finding
    )


def test_another_programs_database_is_left_as_it_is(settings: Settings) -> None:
    settings.directory("run")
    file = settings.home / "everlearn.db"
    with sqlite3.connect(file) as theirs:
        theirs.execute("CREATE TABLE bookmarks (url)")
    before = sqlite3.connect(file).execute("SELECT * FROM sqlite_master").fetchall()
    with pytest.raises(
        ConfigError, match=r"another program's database, which holds bookmarks: use another home"
    ):
        open_database(settings)
    assert sqlite3.connect(file).execute("SELECT * FROM sqlite_master").fetchall() == before


def test_a_database_that_lost_a_table_is_damaged(settings: Settings, filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("DROP TABLE files")
    with pytest.raises(Corrupt, match="no such table: files"):
        use(settings)


def test_a_wal_that_is_cut_anywhere_gives_the_transactions_before_the_cut(
    settings: Settings, tmp_path: Path
) -> None:
    """As after a power cut: what is left is whole, and nothing that came later without what came before."""
    database = open_database(settings)
    file = settings.home / "everlearn.db"
    with database.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(12):
        row = {
            "id": f"f-{number:02}",
            "filename": "x" * 900,
            "purpose": "batch",
            "size_bytes": 1,
            "sha256": "0",
        }
        with write(database) as connection:
            connection.execute(insert(FileRow).values(row))
    whole, wal = file.read_bytes(), file.with_name("everlearn.db-wal").read_bytes()
    found: set[int] = set()
    for cut in sorted({0, 31, 32, len(wal), *random.Random(3).sample(range(len(wal)), 40)}):
        home = tmp_path / f"cut-{cut}"
        home.mkdir()
        (home / "everlearn.db").write_bytes(whole)
        (home / "everlearn.db-wal").write_bytes(wal[:cut])
        opened = open_database(Settings(home=home))
        with read(opened) as connection:
            ids = sorted(connection.scalars(select(FileRow.id)))
            assert ids == [f"f-{number:02}" for number in range(len(ids))]
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        found.add(len(ids))
        opened.dispose()
    assert {0, 12} <= found and len(found) > 6


# Servers that start later ----------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_a_server_that_starts_later_is_waited_for_and_one_that_never_does_is_told(
    settings: Settings, postgres_url: str
) -> None:
    """The server is the real one; its address is answered after a second."""
    folder = postgres_url.partition("host=")[2]
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    late = settings.model_copy(
        update={"database_url": f"postgresql+psycopg://everlearn@127.0.0.1:{port}/postgres"}
    )
    with pytest.raises(Unavailable, match="does not answer"):
        open_database(late, patience_s=0.5)
    threading.Timer(1.0, forward, [port, f"{folder}/.s.PGSQL.5432"]).start()
    start_s = time.monotonic()
    with read(open_database(late, patience_s=30)) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == SCHEMA
    assert 1.0 < time.monotonic() - start_s < 15


def forward(port: int, path: str) -> None:
    """Connections to a port go to a socket, until the test run ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while True:
            ours, _ = server.accept()
            theirs = socket.socket(socket.AF_UNIX)
            theirs.connect(path)
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    server = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=accept, daemon=True).start()


@pytest.mark.postgres
def test_a_database_without_an_encoding_gives_text(postgres_server: str, settings: Settings) -> None:
    """As `initdb` makes it where no locale is set."""
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS plain"))
        connection.execute(
            text("CREATE DATABASE plain ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        )
    url = postgres_server.replace("/postgres?", "/plain?")
    db = open_database(settings.model_copy(update={"database_url": url}))
    create_key(db, "Zoë")
    assert [key.name for key in list_keys(db)] == ["Zoë"]
    db.dispose()
