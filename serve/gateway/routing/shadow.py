"""Copies of requests for a shadow version. Nobody sees its answers; only successes, failures and latencies are counted.

A copy costs the original request nothing but processor time: it is sent in the background at the lowest priority, and
dropped if too many are in flight.
"""

import asyncio
import time
from dataclasses import replace

import jiter
import structlog
from aiohttp import ClientError, ClientPayloadError
from pydantic_core import to_json

from everlearn.errors import EverlearnError
from serve.gateway.http.metrics import Metrics
from serve.gateway.routing.events import BrokenStream, EngineError
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.reply import AttemptFailed, Reply
from serve.gateway.routing.work import Work

AT_ONCE = 16
TIMEOUT_S = 600.0

log = structlog.get_logger()


class Shadows:
    """The copies in flight."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()

    def copy(self, work: Work, replica: Replica, request_id: str) -> None:
        """Send `work` to `replica` in the background."""
        if len(self._running) >= AT_ONCE:
            self._metrics.count_version(replica, "dropped")
            return
        task = asyncio.create_task(self._send(work, replica, f"{request_id}-shadow"))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """Cancel the copies in flight."""
        for task in (running := list(self._running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _send(self, work: Work, replica: Replica, request_id: str) -> None:
        if "generate" in work.tasks:
            work = replace(work, body=to_json(jiter.from_json(work.body) | {"service_tier": "flex"}))
        started_at = time.perf_counter()
        reply = Reply(replica, work)
        outcome = "failed"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await reply.begin({"x-request-id": request_id})
                if work.stream:
                    self._metrics.first_token_of(replica, time.perf_counter() - started_at)
                while work.stream and not reply.events.done:
                    data = await reply.read()
                    if not data:
                        raise ClientPayloadError
                    reply.events.feed(data)
                await reply.finish()
            outcome = "answered"
        except (AttemptFailed, EverlearnError, EngineError, BrokenStream, ClientError, TimeoutError) as error:
            log.warning(
                "shadow_failed", replica=replica.name, error=type(error).__name__, request_id=request_id
            )
        finally:
            reply.close()
            self._metrics.count_version(replica, outcome)
