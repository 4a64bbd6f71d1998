"""The commands of serving: ``everlearn serve`` itself, ``ps``, and versions on trial."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everlearn.cli.arguments import HealthSocket, Json, Ref, complete_ref, open_registry, open_settings
from serve.engines.programs import CHOICES

if TYPE_CHECKING:
    from everlearn.registry.records import Trial
    from everlearn.registry.tables import ReplicaRow

    Engine = str
else:
    Engine = Literal[CHOICES]

commands = typer.Typer()

Percent = Annotated[
    float, typer.Option(min=0, max=100, help="Share of the model's requests, above 0.", show_default=True)
]
Stop = Annotated[bool, typer.Option("--stop", help="End the trial of this model.")]


@commands.command()
def serve(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL[@VERSION]]…", help="Default: every champion.", autocompletion=complete_ref
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=0, max=65535)] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="What serves a model's tensors; auto compresses them to ONNX."),
    ] = None,
    health: HealthSocket = None,
) -> None:
    """Serve models to any OpenAI client."""
    from everlearn.logs import configure_logging
    from serve.supervisor.supervisor import serve as serve_models

    settings = open_settings()
    configure_logging(settings.log_level)
    given = {"host": host, "port": port, "engine": engine}
    serve_settings = settings.serve.model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    serve_models(settings.model_copy(update={"serve": serve_settings}), refs or [], health=health)


@commands.command()
def ps(as_json: Json = False) -> None:
    """List the engines of the running server, and the models that it could not serve."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from everlearn.printing import moment, print_json, print_table
    from everlearn.registry.database import open_database
    from everlearn.registry.records import replica_state
    from everlearn.registry.tables import AliasRow, ReplicaRow

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


@commands.command()
def canary(ref: Ref, percent: Percent = 10, stop: Stop = False, as_json: Json = False) -> None:
    """Let another version answer a share of a model's requests."""
    _try_out(ref, "canary", percent, stop, as_json)


@commands.command()
def shadow(ref: Ref, percent: Percent = 10, stop: Stop = False, as_json: Json = False) -> None:
    """Send copies of a share of a model's requests to another version; its answers are only measured."""
    _try_out(ref, "shadow", percent, stop, as_json)


def _try_out(ref: str, role: Trial, percent: float, stop: bool, as_json: bool) -> None:
    from everlearn.bundles.reference import parse_reference
    from everlearn.printing import print_json

    registry = open_registry(open_settings())
    if stop:
        version = registry.end_trial(parse_reference(ref).model, role)
    else:
        version = registry.try_out(ref, role, percent / 100)
    if as_json:
        print_json({"ref": version.ref, "role": role, "percent": 0 if stop else percent})
    elif stop:
        print(f"{version.ref} is the {role} of {version.model} no more")
    else:
        verb = "answers" if role == "canary" else "hears"
        print(f"{version.ref} {verb} {percent:g}% of the requests for {version.model}, once it is warm")
