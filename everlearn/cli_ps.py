"""``everlearn ps``: which engines run, and why a version was refused."""

from __future__ import annotations

import sys
import time

from everlearn.cli_arguments import Json, open_settings


def ps(as_json: Json = False) -> None:
    """List the engines of the running server, and the versions that it refused to serve."""
    from sqlalchemy import select

    from everlearn.database import ReplicaRow, open_database, read
    from everlearn.printing import moment, print_json, print_table
    from everlearn.records import REPLICA_SILENT_S

    with read(open_database(open_settings())) as connection:
        query = select(ReplicaRow.__table__).order_by(ReplicaRow.model, ReplicaRow.started_at)
        found = [dict(row) for row in connection.execute(query).mappings()]
    for row in found:
        silent = row["state"] != "failed" and row["heartbeat_at"] < time.time() - REPLICA_SILENT_S
        row["state"] = "silent" if silent else row["state"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{row['model']}@{row['version']}", row["state"], row["kind"], row["pid"] or "",
            moment(row["started_at"]), row["error"] or "",
        )
        for row in found
    ]  # fmt: skip
    if rows:
        print_table(["MODEL", "STATE", "ENGINE", "-PID", "SINCE", "ERROR"], rows)
    else:
        print("No engine runs. `everlearn serve` starts one for each champion.", file=sys.stderr)
