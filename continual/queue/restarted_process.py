"""A process that the worker keeps running: it cannot outlive the worker, and is started again when it dies."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from everlearn.processes.parent_death import die_with_parent

BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
SETTLED_S = 10.0

log = structlog.stdlib.get_logger("continual.worker")


class Kept:
    """Started at once after the first death, then after longer and longer pauses, until it stays up again."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.pid: int | None = None
        self.started_s = 0.0
        self._argv = argv
        self._env = env
        self._process: Process | None = None

    async def run(self) -> None:
        """Until cancelled, or stopped."""
        deaths = 0
        while True:
            self.started_s = time.monotonic()
            self._process = process = await asyncio.create_subprocess_exec(
                *self._argv, env=self._env, stdin=DEVNULL, stdout=sys.stderr.fileno(), start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
            self.pid = process.pid
            log.info("started", process=self.name, pid=self.pid)
            code = await process.wait()
            deaths = 0 if time.monotonic() - self.started_s > SETTLED_S else deaths + 1
            pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            log.warning("ended", process=self.name, pid=self.pid, code=code, again_in_s=pause_s)
            self.pid = None
            await asyncio.sleep(pause_s)

    def kill(self) -> None:
        """Ends the process at once; it is started again."""
        self._send(signal.SIGKILL)

    async def stop(self, grace_s: float) -> int | None:
        """SIGTERM, and SIGKILL after ``grace_s``; call it once :meth:`run` is cancelled. Returns the exit code."""
        if self._process is None:
            return None
        self._send(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self._send(signal.SIGKILL)
            return await self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
