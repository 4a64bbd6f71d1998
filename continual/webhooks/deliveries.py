"""Deliveries: which is due, which worker sends it, and what becomes of it after its answer.

At least once: whoever claims a delivery has :data:`CLAIM_S` to write down the answer; was it killed meanwhile, the
delivery is due again then, under the same id. The waits are those that Standard Webhooks recommends.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, select, update

from continual.queue.states import add_event
from continual.webhooks.sender import Answer
from everlearn.registry.database import read, write
from everlearn.registry.tables import WebhookDeliveryRow, WebhookEndpointRow

MINUTE_S, HOUR_S = 60.0, 3600.0
WAITS_S = (
    5.0,
    5 * MINUTE_S,
    30 * MINUTE_S,
    2 * HOUR_S,
    5 * HOUR_S,
    10 * HOUR_S,
    14 * HOUR_S,
    20 * HOUR_S,
    24 * HOUR_S,
)
"""After each try that failed; there is one more try than waits."""
MAX_TRIES = len(WAITS_S) + 1
MAX_RETRY_AFTER_S = 24 * HOUR_S
JITTER = 0.2
"""So much of a wait is added at random at most, so that a receiver that comes back is not asked by all at once."""
CLAIM_S = 60.0
GONE = 410

log = structlog.stdlib.get_logger("continual.webhooks")


@dataclass(frozen=True)
class Delivery:
    """A claimed delivery; ``tries`` counts this one too."""

    event_id: str
    endpoint_id: str
    job_id: str
    type: str
    tries: int
    created_at: float
    url: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def body(self) -> bytes:
        """OpenAI's event; the same bytes at every try."""
        return event_body(self.event_id, self.type, self.job_id, self.created_at)


def event_body(event_id: str, type: str, job_id: str, created_at: float) -> bytes:
    data = {"id": job_id}
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(created_at),
        "type": type,
        "data": data,
    }
    return json.dumps(event, separators=(",", ":")).encode()


def claim_due(db: Engine, busy: Collection[str], limit: int) -> list[Delivery]:
    """At most ``limit`` due deliveries, one for each endpoint that is not ``busy``; they are the caller's to send."""
    due = and_(_waiting(), WebhookDeliveryRow.due_at <= time.time())
    due = and_(due, WebhookDeliveryRow.endpoint_id.not_in(busy))
    with read(db) as connection:
        if connection.scalar(select(WebhookDeliveryRow.event_id).where(due).limit(1)) is None:
            return []
    first = func.min(WebhookDeliveryRow.due_at)
    endpoints = select(WebhookDeliveryRow.endpoint_id).where(due).group_by(WebhookDeliveryRow.endpoint_id)
    with write(db) as connection:
        ids = connection.scalars(endpoints.order_by(first).limit(limit)).all()
        claimed = [_claim(connection, and_(due, WebhookDeliveryRow.endpoint_id == id)) for id in ids]
    return [delivery for delivery in claimed if delivery]


def take_answer(db: Engine, delivery: Delivery, answer: Answer) -> None:
    """Writes down what a try came to: delivered, due again later, or given up."""
    held = and_(_is(delivery), WebhookDeliveryRow.tries == delivery.tries, _waiting())
    now = time.time()
    with write(db) as connection:
        if connection.scalar(select(WebhookDeliveryRow.event_id).where(held)) is None:
            return  # its endpoint was removed, or another worker has claimed it since
        last = {"answered_at": now, "answer": answer.summary}
        if answer.status == GONE:
            last["disabled_at"] = now
        here = WebhookEndpointRow.id == delivery.endpoint_id
        connection.execute(update(WebhookEndpointRow).where(here).values(last))
        about = {"endpoint": delivery.endpoint_id, "job": delivery.job_id, "tries": delivery.tries}
        if answer.is_good:
            connection.execute(update(WebhookDeliveryRow).where(held).values(state="delivered"))
            log.info("webhook delivered", **about, answer=answer.summary)
        elif answer.status == GONE:
            log.warning("webhook endpoint disabled", **about, answer=answer.summary)
            _give_up(connection, WebhookDeliveryRow.endpoint_id == delivery.endpoint_id, "is gone (HTTP 410)")
        elif delivery.tries >= MAX_TRIES:
            log.warning("webhook given up", **about, answer=answer.summary)
            _give_up(connection, held, f"took none of {delivery.tries} tries")
        else:
            wait_s = wait_after(delivery.tries, answer.retry_after_s)
            connection.execute(update(WebhookDeliveryRow).where(held).values(due_at=now + wait_s))
            log.warning("webhook not taken", **about, answer=answer.summary, again_in_s=round(wait_s))


def wait_after(tries: int, retry_after_s: float | None = None) -> float:
    """Seconds until the try after ``tries`` failed ones; a receiver may ask for more, up to a day."""
    wait_s = WAITS_S[tries - 1] * (1 + JITTER * random.random())
    return max(wait_s, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))


def sweep_deliveries(db: Engine, before: float) -> None:
    """Forgets what was delivered or given up, of events before a moment in seconds since 1970."""
    old = and_(WebhookDeliveryRow.state != "waiting", WebhookDeliveryRow.created_at < before)
    with write(db) as connection:
        connection.execute(delete(WebhookDeliveryRow).where(old))


def _waiting() -> ColumnElement[bool]:
    return WebhookDeliveryRow.state == "waiting"


def _is(delivery: Delivery) -> ColumnElement[bool]:
    return and_(
        WebhookDeliveryRow.event_id == delivery.event_id,
        WebhookDeliveryRow.endpoint_id == delivery.endpoint_id,
    )


def _claim(connection: Connection, due: ColumnElement[bool]) -> Delivery | None:
    """The first of an endpoint's due deliveries."""
    row = WebhookDeliveryRow
    query = (
        select(
            row.event_id, row.endpoint_id, row.job_id, row.type, row.tries, row.created_at,
            WebhookEndpointRow.url, WebhookEndpointRow.secret,
        )
        .join(WebhookEndpointRow, WebhookEndpointRow.id == row.endpoint_id)
        .where(due)
        .order_by(row.due_at, row.created_at)
        .limit(1)
    )  # fmt: skip
    found = connection.execute(query).mappings().one()
    delivery = Delivery(**{**found, "tries": found["tries"] + 1})
    if delivery.tries > MAX_TRIES:  # whoever made the last try was killed at it
        log.warning(
            "webhook given up", endpoint=delivery.endpoint_id, job=delivery.job_id, tries=found["tries"]
        )
        _give_up(connection, _is(delivery), f"took none of {found['tries']} tries")
        return None
    claimed = {"tries": delivery.tries, "due_at": time.time() + CLAIM_S}
    connection.execute(update(WebhookDeliveryRow).where(_is(delivery)).values(claimed))
    return delivery


def _give_up(connection: Connection, which: ColumnElement[bool], why: str) -> None:
    """The jobs' events say so by the endpoint's id: its URL is the operator's, and clients read events."""
    columns = (WebhookDeliveryRow.endpoint_id, WebhookDeliveryRow.job_id, WebhookDeliveryRow.type)
    for endpoint_id, job_id, type in connection.execute(select(*columns).where(_waiting(), which)).all():
        end = type.rpartition(".")[2]
        message = f"Webhook {endpoint_id} was not told that the job {_SAID[end]}: it {why}"
        add_event(connection, job_id, message, {"endpoint": endpoint_id}, "warn")
    connection.execute(update(WebhookDeliveryRow).where(_waiting(), which).values(state="failed"))


_SAID = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}
