"""`everlearn serve`: prepare the models, start an engine for each and the gateway before them, keep all running.

One supervisor per home. Its children are a process per engine and one gateway; each is restarted when it dies or
hangs, and none outlives the supervisor.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from everlearn.database import open_database
from everlearn.errors import InvalidInput, Unavailable
from everlearn.keys import any_active_key
from everlearn.registry import Registry, Version
from everlearn.settings import Settings
from serve import claims, replicas
from serve.child import Child, python
from serve.gateway.auth import is_loopback
from serve.gateway.router import POLL_S
from serve.prepare import servable_versions
from serve.watched import Patience, Watched
from serve.welcome import local_url, welcome

ENGINES: Mapping[str, Sequence[str]] = {
    "onnx-genai": python("serve.engines.onnx"),
    "onnx": python("serve.engines.onnx"),
}
"""The program that serves a bundle format."""


log = structlog.get_logger("serve.supervisor")


def serve(
    settings: Settings,
    refs: Sequence[str] = (),
    *,
    engines: Mapping[str, Sequence[str]] = ENGINES,
    patience: Patience | None = None,
) -> None:
    """Serve `refs`, or every servable champion, until SIGTERM or Ctrl-C; then drain and return.

    Raises EverlearnError when it cannot start, and when the gateway or every engine has been given up.
    """
    with (
        claims.home(settings),
        claims.sockets(settings) as sockets,
        claims.port(settings) as (door, bound),
    ):
        asyncio.run(House(bound, engines, patience or Patience(), sockets, door).run(refs))


class House:
    """The running whole: engines, gateway, and the one worker that prepares models."""

    def __init__(
        self,
        settings: Settings,
        programs: Mapping[str, Sequence[str]],
        patience: Patience,
        sockets: Path,
        door: socket.socket,
    ) -> None:
        self.settings = settings
        self.programs = programs
        self.patience = patience
        self.sockets = sockets
        self.door = door
        self.db = open_database(settings)
        self.registry = Registry(settings)
        self.env = {**os.environ, **settings.environment()}
        self.console = Console(stderr=True, highlight=False)
        self.engines: list[tuple[EngineRow, Watched]] = []
        self.gateway: Watched | None = None
        self.worker: Child | None = None

    async def run(self, refs: Sequence[str]) -> None:
        """Open, watch, close. Returns after a signal; raises when there is nothing left to serve with."""
        stop = self._stop_on_signals()
        try:
            await _until(stop, self._open_and_watch(refs))
        finally:
            await self._close()

    async def _open_and_watch(self, refs: Sequence[str]) -> None:
        _refuse_open_door(self.settings, self.db)
        await asyncio.to_thread(replicas.clear_stale, self.db)
        versions = await servable_versions(self.registry, refs, self._everlearn)
        with self.console.status(f"Starting {', '.join(version.ref for version in versions)}"):
            started_at = time.monotonic()
            for version in versions:
                await self._start_engine(version)
            self._start_gateway()
            await asyncio.gather(*(watched.settled.wait() for watched in self._processes()))
            self._refuse_empty_house()
            await self._routed()
        serving = [row.version for row, watched in self.engines if watched.state == "ready"]
        welcome(self.settings, serving, time.monotonic() - started_at, needs_key=any_active_key(self.db))
        while True:
            await asyncio.sleep(0.5)
            self._refuse_empty_house()

    async def _close(self) -> None:
        """The gateway first, which lets its running answers end; then the engines."""
        if self.worker:
            await self.worker.stop(self.patience.stop_s)
        if self.gateway:
            await self.gateway.stop(self.settings.serve.drain_timeout_s + self.patience.stop_s)
        await asyncio.gather(*(self._stop_engine(row, watched) for row, watched in self.engines))

    async def _everlearn(self, arguments: Sequence[str]) -> None:
        """Run one command of this program, its progress on our stderr."""
        self.worker = await Child.start(python("everlearn", *arguments), self.env)
        code = await self.worker.wait()
        if code:
            raise Unavailable(f"`everlearn {' '.join(arguments)}` failed; the reason stands above")
        self.worker = None

    async def _start_engine(self, version: Version) -> None:
        bundle = await asyncio.to_thread(self.registry.path, version)
        id = f"rep-{secrets.token_hex(6)}"
        path = self.sockets / f"{id}.sock"
        row = EngineRow(self.db, id, version, path)
        options = {"--bundle": bundle, "--model": version.model, "--version": version.version, "--uds": path}
        arguments = [str(part) for option in options.items() for part in option]
        argv = [*self.programs[version.format], *arguments]
        watched = Watched(argv, self.env, at=path, observer=row, on_line=pass_on, patience=self.patience)
        self.engines.append((row, watched))
        watched.start()

    async def _stop_engine(self, row: "EngineRow", watched: Watched) -> None:
        await row.draining()
        await watched.stop(self.patience.stop_s)
        await row.withdraw()

    def _start_gateway(self) -> None:
        self.door.close()
        self.gateway = Watched(
            python("serve.gateway", "--parent-pipe"), self.env, at=local_url(self.settings), observer=Door(),
            on_line=pass_on, patience=self.patience,
        )  # fmt: skip
        self.gateway.start()

    async def _routed(self) -> None:
        """Wait until the gateway has seen an engine, so that the first request after the welcome works."""
        async with aiohttp.ClientSession(local_url(self.settings)) as session:
            for _ in range(100):
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/ready") as response:
                        if response.status == 200:
                            await asyncio.sleep(2 * POLL_S if len(self.engines) > 1 else 0)  # the others, too
                            return
                self._refuse_empty_house()
                await asyncio.sleep(0.1)
        raise Unavailable("the gateway runs, and finds no engine that is ready")

    def _refuse_empty_house(self) -> None:
        """Raises when there is nothing left to serve with: whoever started the supervisor should hear of it."""
        for watched in self._processes():
            watched.check()
        if self.gateway and self.gateway.state == "failed":
            raise Unavailable(f"the gateway does not stay up: it {self.gateway.reason}")
        if self.engines and all(watched.state == "failed" for _, watched in self.engines):
            reasons = "\n".join(f"{row.version.ref} {watched.reason}" for row, watched in self.engines)
            raise Unavailable(f"no engine stays up\n{reasons}")

    def _processes(self) -> list[Watched]:
        return [*(watched for _, watched in self.engines), *filter(None, [self.gateway])]

    def _stop_on_signals(self) -> asyncio.Event:
        """The first signal sets the event; the second kills every child and ends this process."""
        stop = asyncio.Event()

        def heard() -> None:
            if stop.is_set():
                for watched in self._processes():
                    watched.kill()
                if self.worker:
                    self.worker.kill()
                os._exit(130)
            stop.set()
            log.info("stopping", note="running answers may end; a second signal stops at once")

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                asyncio.get_running_loop().add_signal_handler(number, heard)
        return stop


class EngineRow:
    """Writes down how one engine fares: its row for the gateway, its mishaps for the log.

    A database that is away for a while stops nothing: the next heartbeat writes the row anew.
    """

    def __init__(self, db: Engine, id: str, version: Version, path: Path) -> None:
        self.db = db
        self.id = id
        self.version = version
        self.url = replicas.unix_url(path)
        self.pid = 0
        self._database_is_away = False
        self._withdrawn = False
        self._writing = threading.Lock()

    async def started(self, pid: int) -> None:
        self.pid = pid
        await self._write(self._announce)

    async def healthy(self, health: dict[str, Any]) -> None:
        def beat() -> None:
            if not replicas.heartbeat(self.db, self.id, context=health.get("context")):
                self._announce()
                replicas.heartbeat(self.db, self.id, context=health.get("context"))

        await self._write(beat)

    async def ended(self, reason: str, *, given_up: bool) -> None:
        log_end("engine", reason, given_up, ref=self.version.ref)
        await self._write(
            lambda: replicas.set_state(self.db, self.id, "failed" if given_up else "starting", error=reason)
        )

    async def draining(self) -> None:
        await self._write(lambda: replicas.set_state(self.db, self.id, "draining"))

    async def withdraw(self) -> None:
        def leave() -> None:
            self._withdrawn = True
            replicas.withdraw(self.db, self.id)

        await self._write(leave)

    def _announce(self) -> None:
        version = self.version
        replicas.announce(
            self.db, id=self.id, model=version.model, version=version.version, digest=version.digest,
            kind="onnx", task=version.task, url=self.url, pid=self.pid,
        )  # fmt: skip

    async def _write(self, action: Callable[[], object]) -> None:
        def act() -> None:
            with self._writing:  # a heartbeat under way when the watch was ended must not write the row anew
                if not self._withdrawn:
                    action()

        try:
            await asyncio.to_thread(act)
            self._database_is_away = False
        except SQLAlchemyError as error:
            if not self._database_is_away:
                log.error("database does not answer", reason=str(error))
            self._database_is_away = True


class Door:
    """Tells the log how the gateway fares."""

    async def started(self, pid: int) -> None:
        pass

    async def healthy(self, health: dict[str, Any]) -> None:
        pass

    async def ended(self, reason: str, *, given_up: bool) -> None:
        log_end("gateway", reason, given_up)


def pass_on(line: str) -> None:
    """Show what a child has written, as it is."""
    with contextlib.suppress(OSError):  # whoever read our stderr is gone; the children must not stall for it
        print(line, file=sys.stderr, flush=True)


def log_end(what: str, reason: str, given_up: bool, **fields: str) -> None:
    """One line; what the process itself last said stands above it."""
    log.warning(
        f"{what} ended", **fields, reason=reason.splitlines()[0], next="given up" if given_up else "restart"
    )


def _refuse_open_door(settings: Settings, db: Engine) -> None:
    host = settings.serve.host
    if not is_loopback(host) and not any_active_key(db):
        raise InvalidInput(
            f"other machines could reach {host!r} and no API key protects it; create one with "
            "`everlearn keys create NAME`, or serve this machine alone with --host 127.0.0.1",
            param="host",
        )


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or `stop` is set, whichever comes first."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled() and (error := working.exception()):
        raise error
