"""A process that the worker keeps running: it cannot outlive the worker, and is started again when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from everlearn.processes.async_child import AsyncChild

BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
SETTLED_S = 10.0

log = structlog.stdlib.get_logger("continual.worker")


class RestartedProcess:
    """It is started at once after the first death, then after longer and longer pauses, until it stays up again."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.pid: int | None = None
        self.started_s = 0.0
        self._argv = argv
        self._env = env
        self._child: AsyncChild | None = None

    async def run(self) -> None:
        """Until cancelled, or stopped."""
        deaths = 0
        while True:
            self.started_s = time.monotonic()
            self._child = child = await AsyncChild.start(self._argv, self._env)
            self.pid = child.pid
            log.info("started", process=self.name, pid=self.pid)
            code = await child.wait()
            deaths = 0 if time.monotonic() - self.started_s > SETTLED_S else deaths + 1
            pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            log.warning("ended", process=self.name, pid=self.pid, code=code, again_in_s=pause_s)
            self.pid = None
            await asyncio.sleep(pause_s)

    def kill(self) -> None:
        """Ends the process at once; it is started again."""
        if self._child:
            self._child.kill()

    async def stop(self, grace_s: float) -> int | None:
        """SIGTERM, and SIGKILL after ``grace_s``; call it once :meth:`run` is cancelled. Returns the exit code."""
        return await self._child.stop(grace_s) if self._child else None
