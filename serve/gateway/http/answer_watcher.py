"""Stops an answer when the client disconnects, the engine falls silent, the client stops reading, or we shut down."""

import asyncio
from typing import Literal, Self

from starlette.types import Receive

Reason = Literal["client_gone", "silent", "slow_reader", "shutting_down"]


class Stopped(Exception):
    """The watched block was ended by its watcher."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class AnswerWatcher:
    """Watches the block that it is the context of, and ends it: the block then raises Stopped.

    `deadline` may be moved at any time at no cost: the timer reads it only when it fires.
    """

    def __init__(self, receive: Receive, limit_s: float) -> None:
        self._reason: Reason | None = None
        self.sending = False
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + limit_s

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._listener = self._loop.create_task(self._listen())
        self._timer = self._loop.call_at(self.deadline, self._check)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._listener.cancel()
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._reason is not None:
            self._task.uncancel()
            raise Stopped(self._reason) from None

    def limit(self, limit_s: float) -> None:
        """Set another time limit from now, which may end sooner than the last."""
        self.deadline = self._loop.time() + limit_s
        self._timer.cancel()
        self._timer = self._loop.call_at(self.deadline, self._check)

    def stop(self, reason: Reason) -> None:
        """End the block. Only the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.stop("client_gone")

    def _check(self) -> None:
        if self._loop.time() < self.deadline:
            self._timer = self._loop.call_at(self.deadline, self._check)
        else:
            self.stop("slow_reader" if self.sending else "silent")
