import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from everlearn.database import SCHEMA, Table, open_database, write, write_ahead
from everlearn.errors import ConfigError, EverlearnError, Unavailable
from everlearn.migrations import configuration
from everlearn.registry import Registry
from everlearn.settings import Settings


def test_migrations_end_at_the_schema_that_the_tables_describe(registry: Registry) -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == SCHEMA
    with registry.database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == SCHEMA
        assert compare_metadata(context, Table.metadata) == []


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
    monkeypatch.setattr("everlearn.database.BUSY_TIMEOUT_S", 0.1)
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
