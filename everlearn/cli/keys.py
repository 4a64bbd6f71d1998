"""``everlearn keys``: API keys at the command line."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from everlearn.registry.tables import ApiKey

UNITS_S = {"m": 60, "h": 3600, "d": 86400}
MAX_LIFE_S = 100 * 365 * 86400

keys = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what uses the key.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model that it may use; repeat. Default: all.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_month: Annotated[
        int | None, typer.Option(min=1, help="A calendar month's budget, UTC.")
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="As 90m, 12h or 30d. Default: never.")] = None,
    requests_in_flight: Annotated[
        int | None, typer.Option(min=1, help="At once. Default: serve.key_requests_in_flight.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="May create training jobs, which can move the champion.")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin", help="May also open the console, and train.")] = False,
    as_json: Json = False,
) -> None:
    """Create a key and print its secret, this once."""
    from everlearn.registry.keys import create_key

    expires_at = time.time() + duration_s(expires_in) if expires_in else None
    secret, key = create_key(
        _database(), name, models, requests_per_minute, tokens_per_minute, expires_at, admin, tokens_per_month,
        requests_in_flight=requests_in_flight, train=train,
    )  # fmt: skip
    _print_secret(secret, key, as_json)


@keys.command()
def rotate(key: Annotated[str, typer.Argument(metavar="ID|NAME")], as_json: Json = False) -> None:
    """Give a key another secret; its limits, what it has used, and what it has made stay. The former one opens nothing."""
    from everlearn.registry.keys import rotate_key

    _print_secret(*rotate_key(_database(), key), as_json)


@keys.command()
def ls(as_json: Json = False) -> None:
    """List keys, without their secrets."""
    from everlearn.printing import moment, print_json, print_table
    from everlearn.registry.keys import list_keys

    database = _database()
    found = list_keys(database)
    if as_json:
        print_json([describe_key(key) for key in found])
        return
    rows = [
        (key.id, key.name, key.prefix + "…", ", ".join(key.models or ["all"]), rights(key),
         key.requests_per_minute or "",
         key.tokens_per_minute or "", key.tokens_per_month or "", moment(key.created_at), state(key))
        for key in found
    ]  # fmt: skip
    print_table(
        ["ID", "NAME", "SECRET", "MODELS", "MAY", "-REQ/MIN", "-TOK/MIN", "-TOK/MONTH", "CREATED", "STATE"],
        rows,
    )
    _tell_if_none_is_valid(database)


@keys.command()
def revoke(key: Annotated[str, typer.Argument(metavar="ID|NAME")], as_json: Json = False) -> None:
    """Close a key; whoever uses it is turned away within seconds, and its batches and jobs end."""
    from everlearn.printing import print_json
    from everlearn.registry.keys import revoke_key

    database = _database()
    closed = revoke_key(database, key)
    print_json(describe_key(closed)) if as_json else print(f"revoked {closed.id} ({closed.name})")
    _tell_if_none_is_valid(database)


@keys.command("open")
def open_() -> None:
    """Ask for no key any more, on this machine alone, until the next one is created. Needs all keys revoked."""
    from everlearn.registry.keys import open_door

    open_door(_database())
    print("requests from this machine need no key now; `everlearn keys create NAME` changes that")


def _print_secret(secret: str, key: ApiKey, as_json: bool) -> None:
    from everlearn.printing import print_json

    if as_json:
        print_json(describe_key(key) | {"secret": secret})
        return
    print(secret)
    print(f"{key.id} for {key.name}: keep the secret, it is not shown again", file=sys.stderr)


def _tell_if_none_is_valid(database: Engine) -> None:
    from everlearn.registry.keys import any_active_key, keys_required

    if keys_required(database) and not any_active_key(database):
        print(
            "no key is valid: the server refuses every request until `everlearn keys create NAME`",
            file=sys.stderr,
        )


def rights(key: ApiKey) -> str:
    return "administer" if key.admin else "train" if key.train else "ask"


def duration_s(text: str) -> int:
    """Seconds of ``90m``, ``12h`` or ``30d``. Raises InvalidInput."""
    match = re.fullmatch(r"([0-9]{1,9})([mhd])", text)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFE_S:
        raise InvalidInput(f"{text[:80]!r} is not a duration such as 90m, 12h or 30d", param="expires_in")
    return seconds


def state(key: ApiKey) -> str:
    from everlearn.printing import moment
    from everlearn.registry.keys import is_active

    if key.revoked_at:
        return f"revoked {moment(key.revoked_at)}"
    if not is_active(key):
        return f"expired {moment(key.expires_at)}"
    return f"until {moment(key.expires_at)}" if key.expires_at else "active"


def describe_key(key: ApiKey) -> dict[str, Any]:
    """A key as JSON gives it: everything but the hash."""
    hidden = {"hash"}
    return {column: getattr(key, column) for column in key.__table__.columns.keys() if column not in hidden}  # noqa: SIM118


def _database() -> Engine:
    from everlearn.registry.database import open_database

    return open_database(open_settings())
