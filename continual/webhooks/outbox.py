"""The transactional outbox: who is to be told of a job's end is written with that end, or not at all.

So an event is neither lost when a process is killed, nor told when the transaction is rolled back. The gateway imports
this: nothing heavy here.
"""

from __future__ import annotations

import secrets
import time

from sqlalchemy import Connection, insert, or_, select

from everlearn.registry.tables import WebhookDeliveryRow, WebhookEndpointRow

EVENTS = tuple(f"fine_tuning.job.{state}" for state in ("succeeded", "failed", "cancelled"))
"""OpenAI's types of events, one for each state in which a job is over."""


def new_event_id() -> str:
    return f"evt_{secrets.token_hex(16)}"


def announce_end(connection: Connection, job_id: str, key_id: str | None, state: str) -> None:
    """Writes a delivery for each endpoint that hears of such an end, in the transaction that ends the job.

    All of them carry the same event's id. ``key_id``: the key that made the job.
    """
    event = f"fine_tuning.job.{state}"
    of_key = or_(WebhookEndpointRow.key_id.is_(None), WebhookEndpointRow.key_id == key_id)
    listening = select(WebhookEndpointRow.id, WebhookEndpointRow.events).where(
        WebhookEndpointRow.disabled_at.is_(None), of_key
    )
    event_id, now = new_event_id(), time.time()
    rows = [
        {
            "event_id": event_id,
            "endpoint_id": endpoint_id,
            "job_id": job_id,
            "type": event,
            "due_at": now,
            "created_at": now,
        }
        for endpoint_id, events in connection.execute(listening)
        if event in events
    ]
    if rows:
        connection.execute(insert(WebhookDeliveryRow), rows)
