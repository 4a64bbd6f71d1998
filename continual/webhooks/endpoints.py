"""The endpoints: URLs that the operator of an installation wants told how jobs end.

Only the command line adds them. No route does: a client must not make the server call hosts of its choice.
"""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, insert, select
from sqlalchemy.orm import Session

from continual.webhooks.outbox import EVENTS
from continual.webhooks.signature import new_secret
from everlearn.errors import InvalidInput, NotFound
from everlearn.registry.audit import record
from everlearn.registry.database import read, write
from everlearn.registry.keys import is_active, may_train, require_key
from everlearn.registry.tables import WebhookDeliveryRow, WebhookEndpointRow
from everlearn.suggest import did_you_mean

if TYPE_CHECKING:
    import httpx

MAX_URL_CHARS = 2048


@dataclass(frozen=True)
class Endpoint:
    """A row of the table, without its secret."""

    id: str
    url: str
    key_id: str | None
    events: list[str]
    created_at: float
    disabled_at: float | None
    answered_at: float | None
    answer: str | None


def add_endpoint(
    db: Engine,
    url: str,
    *,
    key: str | None = None,
    events: Sequence[str] | None = None,
    actor: str | None = None,
) -> tuple[str, Endpoint]:
    """A new endpoint and its secret, which is shown this once.

    ``key``: the id or name of a key; only its jobs are told then. ``events``: of :data:`EVENTS`, or their last words;
    None: all. ``actor``: as :func:`everlearn.registry.audit.record` takes it. Raises InvalidInput, NotFound.
    """
    parsed = parse_url(url)
    chosen = _events(events)
    secret, id = new_secret(), f"hook-{secrets.token_hex(6)}"
    with write(db) as connection:
        key_id = _training_key(connection, key) if key else None
        values = {"id": id, "url": url, "key_id": key_id, "events": chosen, "created_at": time.time()}
        connection.execute(insert(WebhookEndpointRow).values(values | {"secret": secret}))
        # The path and the query of a URL may hold a secret of the receiver's.
        record(connection, actor, "webhook.add", id, host=parsed.host, key=key_id, events=chosen)
        return secret, _require(connection, id)


def list_endpoints(db: Engine) -> list[Endpoint]:
    """The oldest first."""
    query = _columns().order_by(WebhookEndpointRow.created_at, WebhookEndpointRow.id)
    with read(db) as connection:
        return [Endpoint(**row) for row in connection.execute(query).mappings()]


def remove_endpoint(db: Engine, id: str, *, actor: str | None = None) -> Endpoint:
    """Deletes an endpoint, and what it was to be told. Raises NotFound."""
    with write(db) as connection:
        removed = _require(connection, id)
        connection.execute(delete(WebhookDeliveryRow).where(WebhookDeliveryRow.endpoint_id == id))
        connection.execute(delete(WebhookEndpointRow).where(WebhookEndpointRow.id == id))
        record(connection, actor, "webhook.remove", id)
    return removed


def address_of(db: Engine, id: str) -> tuple[str, str]:
    """The URL and the secret of an endpoint. Raises NotFound."""
    query = select(WebhookEndpointRow.url, WebhookEndpointRow.secret).where(WebhookEndpointRow.id == id)
    with read(db) as connection:
        _require(connection, id)
        url, secret = connection.execute(query).one()
    return url, secret


def parse_url(url: str) -> httpx.URL:
    """Raises InvalidInput where nothing could be sent to ``url``, or it holds a user's name."""
    import httpx

    def refuse(why: str) -> InvalidInput:
        return InvalidInput(f"{why}; right is, for example, https://example.com/hooks/everlearn", param="url")

    if len(url) > MAX_URL_CHARS:
        raise refuse(f"the URL has {len(url)} characters, and at most {MAX_URL_CHARS} are kept")
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # decodes international names
    except (httpx.InvalidURL, ValueError) as error:
        raise refuse(f"{url!r} is no URL: {error}") from None
    if parsed.userinfo:  # not repeated: it may be a password
        raise refuse("the URL holds a user's name or password, which would be kept and shown in lists")
    if parsed.scheme not in ("http", "https"):
        raise refuse(f"{url!r} begins with neither http:// nor https://")
    if not host or "%" in host or not host.strip(".-"):
        raise refuse(f"{url!r} names no host")
    if parsed.port is not None and not 1 <= parsed.port <= 65_535:
        raise refuse(f"{url!r} has the port {parsed.port}, which is not from 1 to 65535")
    return parsed


def risk(url: str) -> str | None:
    """What a reader of the network between here and ``url`` could do; None where there is nobody to read."""
    parsed = parse_url(url)
    if parsed.scheme == "https" or _is_near(parsed.host):
        return None
    return f"http://{parsed.host} is not encrypted: whoever is in between can read and hold back what is sent; use https"


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:  # a name; one without a dot is this network's
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))


def _events(asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return list(EVENTS)
    by_word = {event.rpartition(".")[2]: event for event in EVENTS} | {event: event for event in EVENTS}
    for event in asked:
        if event not in by_word:
            raise InvalidInput(
                f"{event!r} is no event; there are {', '.join(EVENTS)}{did_you_mean(event, by_word)}",
                param="events",
            )
    if not asked:
        raise InvalidInput("no event is named; leave events out for all of them", param="events")
    wanted = {by_word[event] for event in asked}
    return [event for event in EVENTS if event in wanted]


def _training_key(connection: Connection, identifier: str) -> str:
    with Session(connection) as session:
        key = require_key(session, identifier)
        if not is_active(key):
            raise InvalidInput(f"{key.id} is not valid any more: it creates no jobs", param="key")
        if not may_train(key):
            raise InvalidInput(
                f"{key.id} may not create jobs; `everlearn keys create NAME --train` makes one that may",
                param="key",
            )
        return key.id


def _require(connection: Connection, id: str) -> Endpoint:
    row = connection.execute(_columns(WebhookEndpointRow.id == id)).mappings().first()
    if row is None:
        raise NotFound(f"there is no webhook {id[:80]!r}; `everlearn webhooks ls` shows them", param="id")
    return Endpoint(**row)


def _columns(*where: ColumnElement[bool]) -> Select[Any]:
    """Every column but the secret."""
    columns = [column for column in WebhookEndpointRow.__table__.columns if column.name != "secret"]
    return select(*columns).where(*where)
