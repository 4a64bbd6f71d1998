"""The worker's thread that sends what is due.

It has an event loop and threads of its own: a receiver that is slow or dead, or a name server that is, holds up neither
the reconciler nor what other endpoints are told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import structlog
from sqlalchemy import Engine

from continual.webhooks.deliveries import Delivery, claim_due, take_answer
from continual.webhooks.sender import send
from everlearn.errors import EverlearnError

MAX_AT_ONCE = 32
"""Deliveries under way in this process; never two to one endpoint."""
GRACE_S = 2.0
"""So long may those under way take when the worker ends. What is cut off is sent again later."""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.stdlib.get_logger("continual.webhooks")


class Courier:
    """Any number of workers may have one on the same table."""

    def __init__(self, database: Engine, poll_s: float = 1.0) -> None:
        self.database = database
        self.poll_s = poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._queries = ThreadPoolExecutor(1, "webhooks-database")
        self._told: set[str] = set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Claims nothing more, and waits a moment for what is under way."""
        self._stopping.set()
        self._thread.join(self.poll_s + GRACE_S + 1)

    def _work(self) -> None:
        with self._queries:
            asyncio.run(self._deliver())

    async def _deliver(self) -> None:
        names = ThreadPoolExecutor(MAX_AT_ONCE, "webhooks-names")  # looks them up
        asyncio.get_running_loop().set_default_executor(names)
        sending: dict[asyncio.Task[None], str] = {}
        while not self._stopping.is_set():
            for delivery in await self._claim(set(sending.values()), MAX_AT_ONCE - len(sending)):
                sending[asyncio.create_task(self._try(delivery))] = delivery.endpoint_id
            if not sending:
                await asyncio.sleep(self.poll_s)
                continue
            done, _ = await asyncio.wait(sending, timeout=self.poll_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del sending[task]
        if sending:
            await asyncio.wait(sending, timeout=GRACE_S)

    async def _claim(self, busy: set[str], free: int) -> Sequence[Delivery]:
        if not free:
            return ()
        try:
            claimed = await self._query(claim_due, self.database, busy, free)
        except Exception as error:  # noqa: BLE001 (webhooks must not end the worker)
            self._tell_once("cannot look for webhooks to deliver", error)
            return ()
        self._told.clear()
        return claimed

    async def _try(self, delivery: Delivery) -> None:
        """One try. What fails beyond the receiver's answer is tried again once the claim has ended."""
        try:
            answer = await send(delivery.url, delivery.secret, delivery.event_id, delivery.body)
            await self._query(take_answer, self.database, delivery, answer)
        except Exception as error:  # noqa: BLE001
            self._tell_once("a webhook's try has come to nothing", error)

    async def _query(self, act: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        call = partial(act, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._queries, call)

    def _tell_once(self, what: str, error: Exception) -> None:
        """Until things go well again. Without the traceback, whose variables hold secrets."""
        if what not in self._told:
            log.error(what, error=error.message if isinstance(error, EverlearnError) else repr(error))
        self._told.add(what)
