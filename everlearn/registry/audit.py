"""The audit log: each administrative act's row is written in the act's own transaction."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from everlearn.registry.database import read
from everlearn.registry.tables import AuditRow

MAX_CHARS = 128


@dataclass(frozen=True)
class Act:
    """A row of the audit log; ``at`` is seconds since 1970, UTC."""

    id: int
    at: float
    actor: str
    act: str
    subject: str
    detail: dict[str, Any]


def record(connection: Connection, actor: str | None, act: str, subject: str, **detail: Any) -> None:
    """Writes down an act within its transaction. ``actor`` None: the user of this machine who runs the program.

    Never a secret nor its hash, never a prompt: this is shown to administrators and kept for good.
    """
    row = {"at": time.time(), "actor": (actor or local_user())[:MAX_CHARS], "act": act, "subject": subject}
    connection.execute(insert(AuditRow).values(row | {"detail": detail}))


def list_acts(db: Engine, limit: int = 50, *, before: int | None = None) -> Sequence[Act]:
    """From the newest to the oldest, those before the act ``before``. Raises Unavailable."""
    query = select(AuditRow.__table__).order_by(AuditRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRow.id < before)
    with read(db) as connection:
        return [Act(**row) for row in connection.execute(query).mappings()]


def local_user() -> str:
    """``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
