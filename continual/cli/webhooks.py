"""``everlearn webhooks``: URLs that are told how jobs end, at the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from everlearn.cli.arguments import Json, open_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from continual.webhooks.endpoints import Endpoint

EndpointId = Annotated[str, typer.Argument(metavar="ID", help="As `everlearn webhooks ls` shows it.")]

webhooks = typer.Typer(name="webhooks", help="Tell URLs how training jobs end.", no_args_is_help=True)


@webhooks.command()
def add(
    url: Annotated[str, typer.Argument(help="Gets a signed POST for each job that ends.")],
    key: Annotated[
        str | None, typer.Option(metavar="ID|NAME", help="Only of this key's jobs. Default: of all.")
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option(help="succeeded, failed or cancelled; repeat, or part by commas. Default: all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a URL and print the secret that signs what is sent there, this once."""
    from continual.webhooks.endpoints import add_endpoint, risk
    from everlearn.printing import print_json

    chosen = [event.strip() for each in events for event in each.split(",")] if events else None
    secret, endpoint = add_endpoint(_database(), url, key=key, events=chosen)
    if warning := risk(url):
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(endpoint.__dict__ | {"secret": secret})
        return
    print(secret)
    print(
        f"{endpoint.id}: keep the secret, it is not shown again; `everlearn webhooks test {endpoint.id}` "
        "sends an event",
        file=sys.stderr,
    )


@webhooks.command()
def ls(as_json: Json = False) -> None:
    """List the URLs, and what the last delivery to each came to."""
    from continual.webhooks.endpoints import list_endpoints
    from everlearn.printing import moment, print_json, print_table

    found = list_endpoints(_database())
    if as_json:
        print_json([endpoint.__dict__ for endpoint in found])
        return
    rows = [
        (
            endpoint.id,
            endpoint.url,
            endpoint.key_id or "all",
            ", ".join(event.rpartition(".")[2] for event in endpoint.events),
            moment(endpoint.created_at),
            _last(endpoint),
        )
        for endpoint in found
    ]
    print_table(["ID", "URL", "KEY", "EVENTS", "SINCE", "LAST DELIVERY"], rows)


@webhooks.command()
def rm(id: EndpointId, as_json: Json = False) -> None:
    """Remove a URL; what it was still to be told is dropped."""
    from continual.webhooks.endpoints import remove_endpoint
    from everlearn.printing import print_json

    removed = remove_endpoint(_database(), id)
    print_json(removed.__dict__) if as_json else print(f"removed {removed.id} ({removed.url})")


@webhooks.command()
def test(id: EndpointId, as_json: Json = False) -> None:
    """Send a signed event of the type webhook.test once, and tell what came back; exits with 1 unless it is 2xx."""
    import asyncio
    import time

    from continual.webhooks.deliveries import event_body
    from continual.webhooks.endpoints import address_of
    from continual.webhooks.outbox import new_event_id
    from continual.webhooks.sender import send
    from everlearn.printing import print_error, print_json

    url, secret = address_of(_database(), id)
    event_id = new_event_id()
    body = event_body(event_id, "webhook.test", "ftjob-test", time.time())
    answer = asyncio.run(send(url, secret, event_id, body))
    if as_json:
        print_json({"id": id, "event": event_id, "answer": answer.summary, "text": answer.text})
    elif answer.is_good:
        print(f"{answer.summary}: the event {event_id} was taken")
    else:
        print_error(f"{url} did not take the event: {answer.summary}; right is any 2xx")
        if text := "".join(char if char.isprintable() else " " for char in answer.text[:500]).strip():
            print(text, file=sys.stderr)
    if not answer.is_good:
        raise typer.Exit(1)


def _last(endpoint: Endpoint) -> str:
    from everlearn.printing import moment

    last = f"{moment(endpoint.answered_at)} {endpoint.answer or ''}".strip()
    return f"{last}; told nothing more" if endpoint.disabled_at else last


def _database() -> Engine:
    from everlearn.registry.database import open_database

    return open_database(open_settings())
