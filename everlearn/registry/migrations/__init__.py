"""Alembic migrations of the one database. ``upgrade`` is called by ``everlearn.registry.database.open_database``."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, Engine, text

from everlearn.errors import ConfigError


def configuration() -> Config:
    """Alembic's configuration, which needs no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(engine: Engine, lock: Path, postgres_lock: int) -> None:
    """Brings the database to the newest schema. Of processes that start together, one does it.

    ``lock`` is a file that processes of this machine lock, ``postgres_lock`` the number of the advisory lock that
    all writers of a PostgreSQL database take. Raises ConfigError where a newer everlearn wrote the database.
    """
    with FileLock(lock), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": postgres_lock})
        config = configuration()
        _refuse_newer(connection, ScriptDirectory.from_config(config))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    if current and current not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigError(
            f"the database has schema {current!r}, which this everlearn does not know: "
            "it was written by a newer version; upgrade everlearn, or use another home"
        )
