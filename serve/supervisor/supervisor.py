"""`everlearn serve`: prepare the models, start an engine for each and the gateway before them, keep all running.

One supervisor per home. Its children are a process per engine, one or several gateways, the worker that trains, and
one that works on batches; each is restarted when it dies or hangs, and none outlives the supervisor. The listening
sockets are the supervisor's: clients that come while a gateway restarts wait for it. How a model changes its
version: `serve.supervisor.swap`.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from prometheus_client.multiprocess import mark_process_dead
from sqlalchemy import Engine

from continual.queue.jobs import why_no_worker
from everlearn.bundles.reference import parse_reference
from everlearn.errors import EverlearnError, InvalidInput, Unavailable
from everlearn.processes.program import environment, python
from everlearn.processes.watched_process import health_endpoint
from everlearn.registry.database import START_PATIENCE_S, open_database
from everlearn.registry.keys import any_active_key, keys_required
from everlearn.registry.records import CHAMPION, TRIALS
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve import replicas
from serve.engines.programs import check_choice
from serve.engines.programs import program as engine_program
from serve.gateway.http.metrics import TOGETHER
from serve.gateway.limits.origin import is_loopback
from serve.gateway.routing.router import POLL_S
from serve.supervisor import claims
from serve.supervisor.launcher import EngineLauncher, Program, log_end, pass_on
from serve.supervisor.prepare import champions, find, is_imported, refuse_twice
from serve.supervisor.swap import ServedModel
from serve.supervisor.watched import Patience, WatchedProcess
from serve.supervisor.welcome import local_url, welcome

BACKLOG = 2048

log = structlog.get_logger("serve.supervisor")


def serve(
    settings: Settings,
    refs: Sequence[str] = (),
    *,
    program: Program = engine_program,
    patience: Patience | None = None,
    health: Path | None = None,
) -> None:
    """Serve `refs`, or every servable champion, until SIGTERM or Ctrl-C; then drain and return.

    A bare name, or `name@champion`, follows the alias champion as it moves; `name@3` stays. `health`: a unix socket that
    answers `GET /health` with 200 while a model serves.
    Raises EverlearnError when it cannot start, and when the gateway or every model has been given up.
    """
    check_choice(settings)
    with (
        claims.home(settings),
        claims.sockets(settings) as sockets,
        claims.port(settings) as (listeners, bound),
    ):
        asyncio.run(Supervisor(bound, program, patience or Patience(), sockets, listeners).run(refs, health))


class Supervisor:
    """Runs the engines of each model, the gateways, and the workers for jobs and batches."""

    def __init__(
        self,
        settings: Settings,
        program: Program,
        patience: Patience,
        sockets: Path,
        listeners: list[socket.socket],
    ) -> None:
        self.settings = settings
        self.patience = patience
        self.sockets = sockets
        self.listeners = listeners
        self.db = open_database(settings, START_PATIENCE_S)
        self.registry = Registry(settings)
        self.env = environment(**settings.environment())
        self.launcher = EngineLauncher(settings, program, patience, sockets, self.db, self.registry, self.env)
        self.models: list[ServedModel] = []
        self.trials: list[ServedModel] = []
        self.unknown: dict[str, EverlearnError] = {}
        """The references that could not be found or imported, and why."""
        self.failure_rows: list[str] = []
        """The ids of the rows that tell so in `everlearn ps`."""
        self.keeping: list[asyncio.Task[None]] = []
        self.gateways: list[WatchedProcess] = []
        self.workers: list[WatchedProcess] = []

    async def run(self, refs: Sequence[str], health: Path | None = None) -> None:
        """Open, watch, close. Returns after a signal. Raises if nothing is left to serve with."""
        stop = self._stop_on_signals()
        try:
            async with health_endpoint(health, self._health):
                await _until(stop, self._open_and_watch(refs))
        finally:
            await self._close()

    async def _open_and_watch(self, refs: Sequence[str]) -> None:
        if self.listeners:
            _refuse_unprotected_address(self.settings, self.db)
        await asyncio.to_thread(replicas.clear_stale, self.db)
        refs = refs or champions(self.registry)
        refuse_twice(refs)
        started_at = time.monotonic()
        here = [ref for ref in refs if is_imported(self.registry, ref)]
        for ref in here:
            await self._offer(ref)
        absent = [ref for ref in refs if ref not in here]
        if absent or self.models:
            self._start_gateways()  # what is ready serves while the rest is being prepared
        for ref in absent:
            await self._offer(ref)
        self._raise_if_nothing_serves()
        self._start_workers()
        await asyncio.gather(*(each.settled.wait() for each in [*self.models, *self.gateways]))
        self._raise_if_nothing_serves()
        if self.gateways:
            await self._routed()
        serving = [model.serving.version for model in self.models if model.serving]
        needs_key, not_served = keys_required(self.db), self._not_served()
        welcome(
            self.settings, serving, time.monotonic() - started_at, needs_key=needs_key, not_served=not_served
        )
        if needs_key and not any_active_key(self.db):
            log.warning("no_valid_key", note="every request is refused until `everlearn keys create NAME`")
        while True:
            await asyncio.sleep(0.5)
            self._raise_if_nothing_serves()

    async def _offer(self, ref: str) -> None:
        """Serve what `ref` names from now on. If it cannot be found or imported, record why; the rest serves."""
        try:
            version = await find(self.registry, ref, self.launcher.everlearn)
        except EverlearnError as error:
            log.error("not served", ref=ref, reason=error.message.splitlines()[0])
            self.unknown[ref] = error
            self.failure_rows.append(await self.launcher.record_failure(ref, 0, CHAMPION, error.message))
            return
        pinned = parse_reference(ref).version not in (None, CHAMPION)
        model = ServedModel(self.launcher, version.model, version.version, pinned=pinned)
        trials = (
            []
            if pinned
            else [ServedModel(self.launcher, model.model, role=role, beside=model) for role in TRIALS]
        )
        self.models.append(model)
        self.trials += trials
        self.keeping += [asyncio.create_task(each.keep()) for each in [model, *trials]]

    def _health(self) -> tuple[bool, dict[str, Any]]:
        """Healthy while a model serves."""
        serving = [model.serving.version.ref for model in self.models if model.serving]
        return bool(serving), {"serving": serving}

    def _not_served(self) -> dict[str, str]:
        """The models that should be served and are not, and why."""
        reasons = {ref: error.message for ref, error in self.unknown.items()}
        return reasons | {model.model: reason for model in self.models if (reason := model.hopeless())}

    async def _close(self) -> None:
        """Stop the gateways first, which finish their running answers; then the engines."""
        for listener in self.listeners:
            listener.close()
        for task in self.keeping:
            task.cancel()
        await asyncio.gather(*self.keeping, return_exceptions=True)
        drain_s = self.settings.serve.drain_timeout_s + self.patience.stop_s
        await asyncio.gather(*(watched.stop(drain_s) for watched in self._others()))
        await asyncio.gather(*(each.close() for each in [*self.models, *self.trials]))
        for row_id in self.failure_rows:
            await self.launcher.remove_failure(row_id)

    def _start_gateways(self) -> None:
        metrics_folder = (
            _empty(self.settings.directory("run") / "metrics") if len(self.listeners) > 1 else None
        )
        env = {**self.env, TOGETHER: str(metrics_folder)} if metrics_folder else self.env
        for number, listener in enumerate(self.listeners, 1):
            listener.listen(BACKLOG)
            path = self.sockets / f"gateway-{number}.sock"
            gateway = WatchedProcess(
                python("serve.gateway", "--parent-pipe", "--fd", str(listener.fileno()), "--uds", str(path)), env,
                at=path, observer=GatewayObserver(metrics_folder, listener), on_line=pass_on, patience=self.patience,
                pass_fds=[listener.fileno()],
            )  # fmt: skip
            gateway.start()
            self.gateways.append(gateway)

    def _start_workers(self) -> None:
        """Keep the workers for jobs and batches running. A server works without them, so they are never given up."""
        modules = {"worker": "continual.queue.worker"} if why_no_worker(self.settings) is None else {}
        if self.settings.serve.batch_requests:
            modules["batches"] = "serve.batches"
        patience = replace(self.patience, quick_crashes=sys.maxsize)
        for name, module in modules.items():
            path = self.sockets / f"{name}.sock"
            worker = WatchedProcess(
                python(module, "--uds", str(path)), self.env, at=path, observer=LoggingObserver(name), on_line=pass_on,
                patience=patience,
            )  # fmt: skip
            worker.start()
            self.workers.append(worker)

    async def _routed(self) -> None:
        """Wait until the gateway has found an engine, so that the first request after the welcome works."""
        async with aiohttp.ClientSession(local_url(self.settings)) as session:
            for _ in range(100):
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/ready") as response:
                        if response.status == 200:
                            await asyncio.sleep(2 * POLL_S if len(self.models) > 1 else 0)  # the others, too
                            return
                self._raise_if_nothing_serves()
                await asyncio.sleep(0.1)
        raise Unavailable("the gateway runs, and finds no engine that is ready")

    def _raise_if_nothing_serves(self) -> None:
        """Raises Unavailable if nothing is left to serve with, and what a task or a watch died of."""
        for task in self.keeping:
            if task.done():
                task.result()
        for watched in self._processes():
            watched.check()
        if self.gateways and all(gateway.state == "failed" for gateway in self.gateways):
            raise Unavailable(f"the gateway does not stay up: it {self.gateways[0].reason}")
        if not self.models and len(self.unknown) == 1:
            raise next(iter(self.unknown.values()))
        reasons = self._not_served()
        if len(reasons) == len(self.models) + len(self.unknown):
            raise Unavailable("nothing can be served\n" + "\n".join(reasons.values()))

    def _processes(self) -> list[WatchedProcess]:
        engines = [running for each in [*self.models, *self.trials] for running in each.processes()]
        return [*(running.watched for running in engines), *self._others()]

    def _others(self) -> list[WatchedProcess]:
        return [*self.gateways, *self.workers]

    def _stop_on_signals(self) -> asyncio.Event:
        """The first signal sets the event; the second kills every child and ends this process."""
        stop = asyncio.Event()

        def heard() -> None:
            if stop.is_set():
                for watched in self._processes():
                    watched.kill()
                if self.launcher.child:
                    self.launcher.child.kill()
                os._exit(130)
            stop.set()
            log.info("stopping", note="running answers may end; a second signal stops at once")

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                asyncio.get_running_loop().add_signal_handler(number, heard)
        return stop


class LoggingObserver:
    """Logs the end of a process that has no row."""

    def __init__(self, what: str) -> None:
        self.what = what

    async def started(self, pid: int) -> None:
        pass

    async def healthy(self, health: dict[str, Any]) -> None:
        pass

    async def ended(self, reason: str, *, given_up: bool) -> None:
        log_end(self.what, reason, given_up)


class GatewayObserver(LoggingObserver):
    """Also removes a dead gateway's requests in flight from `metrics_folder`, the folder in which all gateways count.

    It closes the listener of a gateway that was given up, so that no client waits there.
    """

    def __init__(self, metrics_folder: Path | None, listener: socket.socket) -> None:
        super().__init__("gateway")
        self.metrics_folder = metrics_folder
        self.listener = listener
        self.pid = 0

    async def started(self, pid: int) -> None:
        self.pid = pid

    async def ended(self, reason: str, *, given_up: bool) -> None:
        await super().ended(reason, given_up=given_up)
        if given_up:
            self.listener.close()
        if self.metrics_folder:
            mark_process_dead(self.pid, str(self.metrics_folder))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _refuse_unprotected_address(settings: Settings, db: Engine) -> None:
    host = settings.serve.host
    if not is_loopback(host) and not keys_required(db):
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
