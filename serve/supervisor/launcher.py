"""Starts engines; and a running engine: its watched process, and its row for the gateways."""

import asyncio
import contextlib
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import psutil
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from everlearn.errors import EverlearnError
from everlearn.memory import within_container
from everlearn.processes.async_child import AsyncChild
from everlearn.processes.program import python
from everlearn.registry.registry import Registry, Version
from everlearn.settings import ERROR_FILE, Settings
from serve import replicas
from serve.engines import HAND_OVER, TAKE_OVER
from serve.engines.programs import engine_for
from serve.supervisor.prepare import servable
from serve.supervisor.warmup import warm_up
from serve.supervisor.watched import Patience, WatchedProcess

HAND_OVER_S = 0.5
"""From the row that says `draining` until requests are sent back: by then healthy gateways know who took over."""

MAX_MODEL_CHARS = 64

Program = Callable[[Version, Settings], Sequence[str]]
"""The command line of the engine that serves a version; raises EverlearnError where there is none."""

log = structlog.get_logger("serve.supervisor")


@dataclass
class EngineLauncher:
    """Compresses what is not servable yet, and starts engines."""

    settings: Settings
    program: Program
    patience: Patience
    sockets: Path
    db: Engine
    registry: Registry
    env: Mapping[str, str]
    child: AsyncChild | None = None
    """The `everlearn` command that is running, if any."""
    writing: threading.Lock = field(default_factory=threading.Lock)
    """Held while a row is written, so that a late heartbeat never undoes a hand-over."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def servable(self, model: str, number: int) -> Version:
        """The version that serves for `model@number`, compressed now where it has to be. Raises EverlearnError."""
        return await servable(self.registry, f"{model}@{number}", self.everlearn)

    async def everlearn(self, arguments: Sequence[str]) -> None:
        """Run one command of this program, its progress on our stderr. Raises EverlearnError."""
        folder = self.settings.directory("tmp")
        async with self._one_at_a_time:
            with NamedTemporaryFile(dir=folder, prefix="reason-") as told:
                command = python("everlearn", *arguments)
                self.child = child = await AsyncChild.start(command, {**self.env, ERROR_FILE: told.name})
                try:
                    code = await child.wait()
                finally:
                    if child.is_running:
                        await child.stop(self.patience.stop_s)
                    self.child = None
                reason = told.read().decode(errors="replace")
        if code:
            raise EverlearnError(
                f"`everlearn {' '.join(arguments)}` failed: {reason or child.describe_death(code)}"
            )

    async def record_failure(self, model: str, number: int, role: str, reason: str) -> str:
        """Write a failed row for a version that had no process, or for a model without a version (number 0); returns its id."""
        id = new_id()

        def write() -> None:
            version = self.registry.resolve(f"{model}@{number}") if number else None
            replicas.announce(
                self.db, id=id, model=model[:MAX_MODEL_CHARS], version=number,
                digest=version.digest if version else "", kind=engine_for(version, self.settings).name if version else "",
                task=version.task if version else "", url="", pid=None, state="failed", error=reason, role=role,
            )  # fmt: skip

        try:
            await asyncio.to_thread(write)
        except (SQLAlchemyError, EverlearnError) as error:
            log.error("a refusal was not written down", reason=str(error))
        return id

    async def remove_failure(self, row_id: str) -> None:
        """Remove a row of `record_failure`."""
        try:
            await asyncio.to_thread(replicas.withdraw, self.db, row_id)
        except (SQLAlchemyError, EverlearnError) as error:
            log.error("a refusal was not withdrawn", reason=str(error))

    async def start(self, version: Version, stands_for: int, role: str) -> "RunningEngine":
        """An engine that has begun to load. Raises EverlearnError when its program or its files are not there."""
        argv = self.program(version, self.settings)
        bundle = await asyncio.to_thread(self.registry.path, version)
        running = RunningEngine(self, version, stands_for, role, argv, bundle)
        running.watched.start()
        return running


class RunningEngine:
    """An engine process, kept running, and its row kept true.

    `stands_for` is the version that the alias names: another than `version` where that one had to be compressed.
    While the database is unavailable the engine runs on: the next heartbeat writes the row again.
    """

    def __init__(
        self, launcher: EngineLauncher, version: Version, stands_for: int, role: str, argv: Sequence[str], bundle: Path,
    ) -> None:  # fmt: skip
        self.version = version
        self.stands_for = stands_for
        self._role = role
        self.ended_in_standby = False
        self.id = new_id()
        self._launcher = launcher
        self._db = launcher.db
        self._state: replicas.State | None = "starting"  # None: withdrawn
        self._pid: int | None = None
        self._error: str | None = None
        self._database_unavailable = False
        self._socket = launcher.sockets / f"{self.id}.sock"
        options = {
            "--bundle": bundle, "--model": version.model, "--version": version.version, "--uds": self._socket,
        }  # fmt: skip
        self.watched = WatchedProcess(
            [*argv, *(str(part) for option in options.items() for part in option)], launcher.env, at=self._socket,
            observer=self, on_line=pass_on, patience=launcher.patience,
            warm_up=partial(warm_up, version=version, bundle=bundle),
        )  # fmt: skip
        self._routed = False

    # Observer of the watched process ------------------------------------------------------------------------------------

    async def started(self, pid: int) -> None:
        def announce() -> None:
            self._pid = pid
            self._announce()

        await self._write(announce)

    async def healthy(self, health: dict[str, Any]) -> None:
        def beat() -> None:
            if self._routed and self._state == "starting":
                self._state = "ready"
            self._error = None
            state, context = self._state or "stopped", health.get("context")
            if not replicas.heartbeat(self._db, self.id, context=context, state=state):
                self._announce()
                replicas.heartbeat(self._db, self.id, context=context, state=state)

        await self._write(beat)

    async def ended(self, reason: str, *, given_up: bool) -> None:
        log_end("engine", reason, given_up, ref=self.version.ref)
        self._error = reason
        self.ended_in_standby = self.ended_in_standby or self._state == "standby"
        await self._write(partial(self._become, "failed" if given_up else "starting"))

    # Steps of a swap ----------------------------------------------------------------------------------------

    async def take_over(self, old: "RunningEngine | None") -> bool:
        """In one transaction, route new requests here and none to `old`. False: the database is unavailable."""
        await self.watched.post(TAKE_OVER)

        def flip() -> None:
            if not replicas.hand_over(self._db, self.id, old.id if old else None):
                self._announce()
                replicas.hand_over(self._db, self.id, old.id if old else None)
            self._state, self._routed = "ready", True
            if old:
                old._state, old._routed = "draining", False

        return await self._write(flip)

    async def hand_over(self) -> None:
        """Stop taking requests, and wait until no gateway sends any.

        Requests that are queued in the engine are sent back, for the engine that took over.
        """
        await self._write(partial(self._become, "draining"))
        await asyncio.sleep(min(HAND_OVER_S, self._launcher.patience.notice_s))
        await self.watched.post(HAND_OVER)
        await asyncio.sleep(self._launcher.patience.notice_s)

    async def drain(self) -> None:
        """Finish the running answers, and stop.

        An engine ends its running answers after SIGTERM; it is killed when they take longer than the drain time.
        """
        await self.stop(self._launcher.settings.serve.drain_timeout_s)

    async def stand_by(self) -> None:
        """Stay loaded without requests; running answers finish by themselves."""
        await self._write(partial(self._become, "standby"))

    def may_stand_by(self) -> bool:
        """Whether there is memory for another engine beside this one and whoever took over."""
        settings = self._launcher.settings
        if settings.serve.keep_previous == "off" or not engine_for(self.version, settings).keeps_previous:
            return False
        return 2 * self.watched.resident_bytes() < within_container(psutil.virtual_memory().available)

    async def stop(self, drain_s: float = 0.0) -> None:
        """End the process, and withdraw the row."""
        if self._state not in ("draining", "failed", None):
            await self._write(partial(self._become, "draining"))
        await self.watched.stop(drain_s + self._launcher.patience.stop_s)

        def leave() -> None:
            self._state = None
            replicas.withdraw(self._db, self.id)

        await self._write(leave)

    def _become(self, state: replicas.State) -> None:
        if self._state and (self._state != "draining") == (state != "standby"):  # woken meanwhile: it serves
            self._state = state
            replicas.set_state(self._db, self.id, state, error=self._error)

    def _announce(self) -> None:
        version = self.version
        replicas.announce(
            self._db, id=self.id, model=version.model, version=version.version, digest=version.digest,
            kind=engine_for(version, self._launcher.settings).name, task=version.task, url=replicas.unix_url(self._socket), pid=self._pid,
            state=self._state or "stopped", error=self._error, role=self._role,
        )  # fmt: skip

    async def _write(self, action: Callable[[], object]) -> bool:
        """Write to the database; False if it is unavailable."""

        def act() -> None:
            with self._launcher.writing:
                if self._state is not None:  # a late heartbeat must not write the row anew
                    action()

        try:
            await asyncio.to_thread(act)
        except (SQLAlchemyError, EverlearnError) as error:
            if not self._database_unavailable:
                log.error("database does not answer", reason=str(error))
            self._database_unavailable = True
            return False
        self._database_unavailable = False
        return True


def new_id() -> str:
    return f"rep-{secrets.token_hex(6)}"


def pass_on(line: str) -> None:
    """Print a child's line unchanged on our standard error."""
    with contextlib.suppress(OSError):  # whoever read our stderr is gone; the children must not stall for it
        print(line, file=sys.stderr, flush=True)


def log_end(what: str, reason: str, given_up: bool, **fields: str) -> None:
    """Log the end of a process in one line; its own last lines stand above."""
    log.warning(
        f"{what} ended", **fields, reason=reason.splitlines()[0], next="given up" if given_up else "restart"
    )
