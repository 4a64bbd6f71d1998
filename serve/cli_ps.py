"""``everlearn ps``: which engines run, and why a version was refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from everlearn.cli.arguments import Json, open_settings

if TYPE_CHECKING:
    from everlearn.registry.database import ReplicaRow


def ps(as_json: Json = False) -> None:
    """List the engines of the running server, and what it was to serve and could not."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from everlearn.printing import moment, print_json, print_table
    from everlearn.registry.database import AliasRow, ReplicaRow, open_database
    from everlearn.registry.records import replica_state

    with Session(open_database(open_settings())) as session:
        query = select(ReplicaRow).order_by(ReplicaRow.model, ReplicaRow.started_at)
        found = list(session.scalars(query))
        aliases = {(row.model, row.alias): row.share for row in session.scalars(select(AliasRow))}
    if as_json:
        print_json([describe(row, aliases) for row in found])
        return
    rows = [
        (ref(row), replica_state(row), role(row, aliases), row.kind, row.pid or "", moment(row.started_at), row.error or "")
        for row in found
    ]  # fmt: skip
    if rows:
        print_table(["MODEL", "STATE", "ROLE", "ENGINE", "-PID", "SINCE", "ERROR"], rows)
    else:
        print("No engine runs. `everlearn serve` starts one for each champion.", file=sys.stderr)


Shares = dict[tuple[str, str], "float | None"]
"""Of each model's aliases."""


def ref(row: ReplicaRow) -> str:
    """``smollm2@2``; the name alone where no version was found or imported."""
    return f"{row.model}@{row.version}" if row.version else row.model


def role(row: ReplicaRow, shares: Shares) -> str:
    """``champion``, or ``canary 10%``."""
    share = shares.get((row.model, row.role))
    return row.role if share is None else f"{row.role} {share * 100:g}%"


def describe(row: ReplicaRow, shares: Shares) -> dict[str, Any]:
    from everlearn.registry.records import replica_state

    return {
        "ref": ref(row),
        "model": row.model,
        "version": row.version or None,
        "state": replica_state(row),
        "role": row.role,
        "share": shares.get((row.model, row.role)),
        "kind": row.kind,
        "pid": row.pid,
        "context": row.context,
        "since": row.started_at,
        "heartbeat_at": row.heartbeat_at,
        "error": row.error,
    }
