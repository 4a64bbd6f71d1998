"""`everlearn worker`: the parent of the broker and of the consumer, and the reconciler of the queue.

It keeps both running, sends webhooks, and is small: the libraries that train are loaded by the child of each job alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from continual.queue.broker import EmbeddedValkey
from continual.queue.consumer import Publisher
from continual.queue.files import Files
from continual.queue.jobs import Jobs
from continual.queue.reconciler import Reconciler
from continual.queue.restarted_process import RestartedProcess
from continual.webhooks.courier import Courier
from continual.webhooks.deliveries import sweep_deliveries
from everlearn.errors import EverlearnError, Unavailable
from everlearn.logs import configure_logging
from everlearn.privacy import keep_private
from everlearn.processes.program import environment, python
from everlearn.processes.watched_process import health_endpoint, shutdown_event
from everlearn.registry.database import START_PATIENCE_S, open_database
from everlearn.settings import Settings, load_settings

CONSUMER = python("continual.queue.consumer")
STALLED_S = 12.0
"""So long may jobs wait for an idle consumer, until it counts as deaf and is started anew; then twice as long, so
that a slow machine's consumer has time to start."""
SWEEP_EVERY_S = 3600.0
DAY_S = 86_400.0

log = structlog.stdlib.get_logger("continual.worker")


def work(
    settings: Settings,
    *,
    uds: Path | None = None,
    supervised: bool = False,
    consumer: Sequence[str] = CONSUMER,
) -> None:
    """Runs jobs until SIGTERM or Ctrl-C, and where it is ``supervised`` until the end of standard input.

    ``uds``: a unix socket that answers ``GET /health``.

    A running job is then stopped where it can go on, and waits in the queue. Raises Unavailable, ConfigError.
    """
    asyncio.run(Worker(settings, consumer).run(uds, supervised))


class Worker:
    """Broker, consumer, reconciler, courier."""

    def __init__(self, settings: Settings, consumer: Sequence[str] = CONSUMER) -> None:
        self.settings = settings
        self.jobs = Jobs(settings, open_database(settings, START_PATIENCE_S))
        self.files = Files(settings, self.jobs.database)
        self.reconciler = Reconciler(self.jobs, Publisher(settings))
        self.courier = Courier(self.jobs.database, min(1.0, settings.continual.reconcile_s))
        self.valkey = None if settings.redis_url else EmbeddedValkey(settings)
        self.consumer = RestartedProcess("consumer", consumer, environment(**settings.environment()))
        self.reconciled_s = time.monotonic()
        self._waiting_since_s: float | None = None
        self._patience_s = STALLED_S
        self._swept_s = float("-inf")

    async def run(self, uds: Path | None, supervised: bool) -> None:
        shutdown = shutdown_event(follow_input=supervised)
        parts: list[Awaitable[None]] = [self.consumer.run(), self._reconcile()]
        if self.valkey:
            parts.append(self.valkey.run())
        tasks = [asyncio.ensure_future(part) for part in parts]
        async with health_endpoint(uds, self._health):
            log.info("the worker is up", pid=os.getpid(), home=str(self.settings.home))
            self.courier.start()
            stopped = asyncio.ensure_future(shutdown.wait())
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self.courier.stop)
            code = await self.consumer.stop(self.settings.continual.shutdown_s + 5)
            if self.valkey:
                await self.valkey.stop()
            log.info("the worker ends", consumer=code)
        for fault in ended:
            if isinstance(fault, Exception):
                raise fault

    def _health(self) -> tuple[bool, dict[str, Any]]:
        """Healthy while the reconciler runs."""
        silent_s = time.monotonic() - self.reconciled_s
        return silent_s < 60 + self.settings.continual.reconcile_s, {"consumer": self.consumer.pid}

    async def _reconcile(self) -> None:
        while True:
            await asyncio.to_thread(self.reconciler.reconcile)
            with suppress(Unavailable):
                await asyncio.to_thread(self._wake_deaf_consumer)
                await asyncio.to_thread(self._sweep)
            self.reconciled_s = time.monotonic()
            await asyncio.sleep(self.settings.continual.reconcile_s)

    def _wake_deaf_consumer(self) -> None:
        """A consumer that stays connected and consumes nothing looks healthy; only the waiting jobs tell.

        So it is when the broker dies just as a message is acknowledged: to Celery that one stays under way for ever.
        """
        now_s, pid = time.monotonic(), self.consumer.pid
        busy = any((job.lease_owner or "").split(":")[1:2] == [str(pid)] for job in self.jobs.running())
        if pid is None or busy or not self.jobs.queued(1):
            self._waiting_since_s = None
            if pid is not None:
                self._patience_s = STALLED_S
            return
        since_s = self._waiting_since_s = max(self._waiting_since_s or now_s, self.consumer.started_s)
        if now_s - since_s > self._patience_s:
            log.error("the consumer takes no jobs and is started anew", pid=pid)
            self.consumer.kill()
            self._waiting_since_s = None
            self._patience_s *= 2

    def _sweep(self) -> None:
        """Clears the folders and webhooks of jobs that ended days ago, and what broken uploads left."""
        if time.monotonic() - self._swept_s < SWEEP_EVERY_S:
            return
        self._swept_s = time.monotonic()
        self.files.sweep()
        before = time.time() - self.settings.continual.keep_jobs_days * DAY_S
        old = set(self.jobs.over(before))
        sweep_deliveries(self.jobs.database, before)
        for path in self.settings.directory("jobs").iterdir():
            if path.is_dir() and path.name in old:
                shutil.rmtree(path, ignore_errors=True)
            elif path.stem in old:
                path.unlink(missing_ok=True)


def main() -> int:
    """`python -m continual.queue.worker [--uds PATH]`."""
    parser = argparse.ArgumentParser(prog="python -m continual.queue.worker", description="Run queued jobs.")
    parser.add_argument("--uds", type=Path, help="answer GET /health here, and end when standard input does")
    arguments = parser.parse_args()
    keep_private()
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        work(settings, uds=arguments.uds, supervised=arguments.uds is not None)
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
