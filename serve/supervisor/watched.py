"""A server process that is kept running: started, warmed up, health-checked, killed if it hangs, restarted."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import aiohttp
import psutil

from everlearn.processes.async_child import AsyncChild
from serve.engines import NO_MEMORY
from serve.supervisor.warmup import Unfit

WRONG_USAGE = 2
"""The exit code for a wrong configuration, which a restart would not change."""


@dataclass(frozen=True)
class Patience:
    """Timeouts, in seconds."""

    start_s: float = 900.0
    """From the start of a process to its first good health answer."""
    warm_up_s: float = 120.0
    """From its first good health answer to the end of its warm-up."""
    hung_s: float = 20.0
    """Without a good health answer, until a process counts as hung."""
    poll_s: float = 2.0
    """Between two health checks once it is ready; they are more frequent while it starts."""
    settled_s: float = 30.0
    """A process that was ready for longer than this did not crash quickly."""
    quick_crashes: int = 4
    """After this many quick crashes in a row it is given up. Hangs and lack of memory do not count: see `Life`."""
    backoff_s: float = 0.5
    """The pause before the first restart; doubled with each quick crash, up to `backoff_max_s`."""
    backoff_max_s: float = 30.0
    notice_s: float = 4.0
    """From the row that says `draining` to SIGTERM: by then every gateway has read it, even one short of CPU."""
    stop_s: float = 10.0
    """From SIGTERM to SIGKILL; the gateway has its drain time in addition."""


class Observer(Protocol):
    """Is told when a process starts, is healthy, and ends."""

    async def started(self, pid: int) -> None: ...
    async def healthy(self, health: dict[str, Any]) -> None: ...
    async def ended(self, reason: str, *, given_up: bool) -> None: ...


class Life(NamedTuple):
    """One life of a process, from its start to its end; after a `hopeless` one, another would end the same way.

    One that was ready and then hung or had no memory left is `excused` and says nothing about the next: its start and
    its warm-up showed that the program, the weights and the machine are sound, so that what it was asked for ended it.
    Nobody's requests may make us give up. What dies at its start, or quickly by itself, does count.
    """

    ready_s: float
    reason: str
    hopeless: bool = False
    excused: bool = False


class WatchedProcess:
    """A process that answers `GET /health` on a unix socket, and is kept running.

    It is ready once it is healthy and has been through `warm_up`, in each of its lives anew.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        at: Path,
        observer: Observer,
        on_line: Callable[[str], None],
        patience: Patience,
        warm_up: Callable[[aiohttp.ClientSession], Awaitable[None]] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.argv = argv
        self.env = env
        self.at = at
        self.observer = observer
        self.on_line = on_line
        self.patience = patience
        self.warm_up = warm_up
        self.pass_fds = pass_fds
        self.state: Literal["starting", "ready", "failed"] = "starting"
        self.reason = ""
        self.settled = asyncio.Event()
        """Set once the process was ready, or its watch has ended."""
        self._child: AsyncChild | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())
        self._task.add_done_callback(lambda _: self.settled.set())

    def check(self) -> None:
        """Raise the exception that ended the watch, if one did."""
        if (
            self._task
            and self._task.done()
            and not self._task.cancelled()
            and (error := self._task.exception())
        ):
            raise error

    async def stop(self, grace_s: float) -> None:
        """End the watch, then the process: SIGTERM, and SIGKILL after `grace_s` seconds."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._child and self._child.is_running:
            await self._child.stop(grace_s)

    async def post(self, path: str) -> None:
        """POST to the process, and ignore the answer: it may not know the path."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session() as session, session.post(path):
                pass

    def resident_bytes(self) -> int:
        """Resident memory of the process and its children; 0 if it is gone."""
        total = 0
        if self._child:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(self._child.pid)
                for each in [process, *process.children(recursive=True)]:
                    total += each.memory_info().rss
        return total

    def kill(self) -> None:
        """End the process at once, without waiting."""
        if self._child:
            self._child.kill()

    async def _keep_running(self) -> None:
        crashes = 0
        while True:
            life = await self._live()
            crashes = 0 if life.ready_s > self.patience.settled_s else crashes
            crashes += not life.excused
            given_up = life.hopeless or crashes >= self.patience.quick_crashes
            self.reason = life.reason
            self.state = "failed" if given_up else "starting"
            await self.observer.ended(life.reason, given_up=given_up)
            if given_up:
                return
            await asyncio.sleep(
                min(self.patience.backoff_s * 2 ** max(0, crashes - 1), self.patience.backoff_max_s)
            )

    async def _live(self) -> Life:
        self.at.unlink(missing_ok=True)
        self._child = child = await AsyncChild.start(self.argv, self.env, self.on_line, self.pass_fds)
        await self.observer.started(child.pid)
        death = asyncio.create_task(child.wait())
        ready_at: float | None = None
        heard_at = time.monotonic()
        async with self._session() as session:
            while not death.done():
                health = await self._health(session)
                if health is not None and not ready_at:
                    try:
                        health = health if await self._warmed_up(session) else None
                    except Unfit as unfit:
                        child.kill()
                        await death
                        return Life(0.0, str(unfit), hopeless=True)
                now = time.monotonic()
                if health is not None and not death.done():
                    heard_at = now
                    ready_at = ready_at or now
                    await self.observer.healthy(health)
                    self.state = "ready"
                    self.settled.set()
                limit_s = self.patience.hung_s if ready_at else self.patience.start_s
                if now - heard_at > limit_s:
                    child.kill()
                    await death
                    reason = f"showed no health for {limit_s:g} s and was killed"
                    return Life(now - (ready_at or now), reason, not ready_at, excused=bool(ready_at))
                await asyncio.wait({death}, timeout=self.patience.poll_s if ready_at else 0.1)
        code = await death
        ready_s = time.monotonic() - ready_at if ready_at else 0.0
        misconfigured = code == WRONG_USAGE and not ready_at
        if code == NO_MEMORY and ready_at:
            return Life(ready_s, "found no memory left and ended", excused=True)
        return Life(ready_s, child.describe_death(code), misconfigured)

    async def _warmed_up(self, session: aiohttp.ClientSession) -> bool:
        """False if the process ended during its warm-up, whose reason its end tells. Raises Unfit."""
        if self.warm_up is None:
            return True
        try:
            async with asyncio.timeout(self.patience.warm_up_s):
                await self.warm_up(session)
        except TimeoutError:
            raise Unfit(f"did not answer its warm-up within {self.patience.warm_up_s:g} s") from None
        except aiohttp.ClientError:
            return False
        return True

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            "http://engine",
            connector=aiohttp.UnixConnector(str(self.at)),
            timeout=aiohttp.ClientTimeout(total=max(self.patience.hung_s / 4, 0.2)),
        )

    @staticmethod
    async def _health(session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """The body of a good health answer; None if it is bad or missing."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with session.get("/health") as response:
                if response.status == 200:
                    body = await response.json(content_type=None)
                    return body if isinstance(body, dict) else {}
        return None
