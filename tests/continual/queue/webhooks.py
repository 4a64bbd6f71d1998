"""What the tests of webhooks do to an installation, and see of it."""

from collections.abc import Callable
from typing import Any

from openai import OpenAI
from sqlalchemy import select, update

from continual.queue.states import Job, Lease
from everlearn.registry.database import read, write
from everlearn.registry.tables import WebhookDeliveryRow
from tests.continual.queue.conftest import Installation
from tests.support.webhook_receiver import Receiver

MakeReceiver = Callable[..., Receiver]


def deliveries(installation: Installation) -> list[Any]:
    query = select(WebhookDeliveryRow.__table__).order_by(WebhookDeliveryRow.created_at)
    with read(installation.jobs.database) as connection:
        return list(connection.execute(query))


def states(installation: Installation) -> list[str]:
    return [row.state for row in deliveries(installation)]


def change(installation: Installation, **values: Any) -> None:
    """What time does: all deliveries get these values."""
    with write(installation.jobs.database) as connection:
        connection.execute(update(WebhookDeliveryRow).values(values))


def cancelled(installation: Installation, **fields: Any) -> Job:
    return installation.jobs.cancel(installation.create(**fields).id)


def running(installation: Installation, **fields: Any) -> Lease:
    lease = installation.jobs.claim(installation.create(**fields).id, "one")
    assert lease
    return lease


def unwrap(secret: str, request: tuple[dict[str, str], bytes]) -> Any:
    headers, body = request
    return OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)


def succeed(installation: Installation) -> str:
    lease = running(installation)
    installation.jobs.finish(lease, "succeeded", result_model="tiny@1")
    return lease.job_id
