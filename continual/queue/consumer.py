"""The Celery side: messages that carry a job's id and nothing else, and the process that consumes them.

A message is a hint to look at a row. It may come twice, late or never: who gets it claims the row or drops it,
and the reconciler publishes again. So nothing here relies on what a broker promises.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterable
from typing import Any, cast

from celery import Celery
from celery.signals import worker_shutting_down
from kombu.exceptions import OperationalError

from continual.queue.attempt import PIPELINE, run_job
from continual.queue.broker import broker_url
from continual.queue.jobs import Jobs
from everlearn.errors import Unavailable
from everlearn.logs import configure_logging
from everlearn.settings import Settings, load_settings

QUEUE = "everlearn.jobs"
TASK = "everlearn.run_job"
PUBLISH_TIMEOUT_S = 2
VISIBILITY_TIMEOUT_S = 3600
"""After this long Redis delivers a message again although its job runs; whoever gets it drops it."""


def celery_app(settings: Settings, **transport: Any) -> Celery:
    """One queue, JSON alone, nothing fetched ahead, acknowledged when done, no results kept in the broker."""
    app = Celery("everlearn", broker=broker_url(settings), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_soft_shutdown_timeout=settings.continual.shutdown_s,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_S, **transport},
    )
    return app


class Publisher:
    """Puts ids into the queue. Raises Unavailable within seconds where the broker does not take them."""

    def __init__(self, settings: Settings) -> None:
        timeouts = {"socket_timeout": PUBLISH_TIMEOUT_S, "socket_connect_timeout": PUBLISH_TIMEOUT_S}
        self._app = celery_app(settings, **timeouts, max_retries=0)

    def waiting(self) -> int:
        """How many messages are in the queue, of whatever content."""
        try:
            with cast("Any", self._app.connection_for_write(connect_timeout=PUBLISH_TIMEOUT_S)) as connection:
                return connection.default_channel.queue_declare(queue=QUEUE, passive=False).message_count
        except _broker_faults() as error:
            raise Unavailable(f"the broker does not answer: {error}") from None

    def publish(self, job_ids: Iterable[str]) -> None:
        try:
            for job_id in job_ids:
                self._app.send_task(TASK, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
        except _broker_faults() as error:
            raise Unavailable(f"the broker takes no message: {error}") from None


def consume(settings: Settings, *, module: str = PIPELINE) -> int:
    """The process that runs jobs, one at a time: until SIGTERM, which stops the running job where it can go on.

    The work is done by a child, so that one thread suffices here, and the broker is listened to meanwhile.
    """
    app = celery_app(settings)
    jobs = Jobs(settings)
    stopping = threading.Event()

    @worker_shutting_down.connect(weak=False)
    def _(**_: Any) -> None:
        stopping.set()

    @app.task(name=TASK)
    def run(job_id: str) -> None:
        run_job(jobs, str(job_id)[:64], stopping, module=module)

    name = f"everlearn-{os.getpid()}@{socket.gethostname()}"
    app.worker_main([
        "worker", "--pool=threads", "--concurrency=1", "--loglevel=warning", f"--hostname={name}",
        "--without-gossip", "--without-mingle", "--without-heartbeat", f"--queues={QUEUE}",
    ])  # fmt: skip
    return 0


def _broker_faults() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return OperationalError, RedisError, OSError


if __name__ == "__main__":
    configured = load_settings()
    configure_logging(configured.log_level)
    sys.exit(consume(configured))
