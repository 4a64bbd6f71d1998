"""Which engine takes a request: the replica of the model with the least in flight, among the healthy ones."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, UnixConnector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from yarl import URL

from everlearn.errors import InvalidInput
from serve.gateway.failures import ModelNotFound, NoBackend
from serve.gateway.metrics import Metrics
from serve.replicas import ReadyReplica, awaited_models, ready_replicas, unix_path

if TYPE_CHECKING:
    from serve.gateway.shared import Shared

POLL_S = 0.25
CONNECT_TIMEOUT_S = 5
KEEP_ALIVE_S = 2  # shorter than any engine's, so that a request never meets a connection being closed
FAILURES_TO_EJECT = 3
EJECTED_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
RETRY_SHARE = 0.1
RETRY_RESERVE = 10.0

log = structlog.get_logger()


class Replica:
    """One engine, its connections, and how it has behaved."""

    def __init__(self, row: ReadyReplica) -> None:
        self.row = row
        self.name = f"{row.model}@{row.version}"
        self.in_flight = 0
        self.last_used = 0.0
        self._failures = 0
        self._ejections = 0
        self._ejected_until = 0.0
        self._probing = False
        socket = unix_path(row.url)
        self.url = URL("http://engine") if socket else URL(row.url)
        connector = (
            UnixConnector(str(socket), limit=0, keepalive_timeout=KEEP_ALIVE_S)
            if socket
            else TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        )
        self.session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            trust_env=False,
        )

    @property
    def ejected(self) -> bool:
        """Failed too often lately and not yet proved well again."""
        return self._ejected_until > 0

    @property
    def ejected_for_s(self) -> float:
        """Seconds until a probe may try this replica again."""
        return max(0.0, self._ejected_until - time.monotonic())

    def takes_requests(self) -> bool:
        """Healthy, or ejected long enough ago that one request may probe it."""
        return not self.ejected or (self.ejected_for_s == 0 and not self._probing)

    def start(self) -> None:
        """Count a request in; on an ejected replica it is the probe."""
        self.in_flight += 1
        self.last_used = time.monotonic()
        self._probing = self.ejected

    def finish(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        self._probing = False

    def succeeded(self) -> None:
        """The engine answered: whatever was held against it is forgotten."""
        self._failures = self._ejections = 0
        self._ejected_until = 0.0

    def failed(self, at_once: bool = False) -> None:
        """The engine broke, refused the connection (`at_once`) or fell silent.

        What was under way when it was ejected, and breaks as well, says nothing new.
        """
        if self.ejected_for_s > 0 and not self._probing:
            return
        self._failures += 1
        if at_once or self.ejected or self._failures >= FAILURES_TO_EJECT:
            pause_s = EJECTED_S[min(self._ejections, len(EJECTED_S) - 1)]
            self._ejections += 1
            self._ejected_until = time.monotonic() + pause_s
            log.warning("replica_ejected", replica=self.name, id=self.row.id, seconds=pause_s)


class RetryBudget:
    """Second attempts are at most a tenth of the traffic, so that failures cannot multiply themselves."""

    def __init__(self) -> None:
        self._left = RETRY_RESERVE

    def earn(self) -> None:
        """A request came."""
        self._left = min(RETRY_RESERVE, self._left + RETRY_SHARE)

    def spend(self) -> bool:
        """Whether one more retry is allowed; counts it."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Router:
    """Keeps the ready replicas by polling their table."""

    def __init__(self, db: Engine, metrics: Metrics, shared: "Shared | None" = None) -> None:
        self.budget = RetryBudget()
        self._db = db
        self._metrics = metrics
        self._shared = shared
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="replicas")
        self._replicas: dict[tuple[str, float], Replica] = {}
        self._leaving: set[Replica] = set()
        self._readable = True
        self._awaited: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """Follow the table. Runs until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Read the table once; while the database is away, the last known replicas stay."""
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._threads, ready_replicas, self._db)
            self._awaited = await loop.run_in_executor(self._threads, awaited_models, self._db)
        except SQLAlchemyError as error:
            if self._readable:
                log.error("replicas_unreadable", error=type(error).__name__)
            self._readable = False
            return
        self._readable = True
        known = {(row.id, row.started_at): row for row in rows}
        for key in known.keys() - self._replicas.keys():
            self._replicas[key] = Replica(known[key])
            log.info("replica_found", replica=self._replicas[key].name, id=key[0])
        for key in self._replicas.keys() - known.keys():
            replica = self._replicas.pop(key)
            self._leaving.add(replica)
            log.info("replica_gone", replica=replica.name, id=key[0])
        await self._close(replica for replica in list(self._leaving) if replica.in_flight == 0)

    async def close(self) -> None:
        """Drop every connection."""
        await self._close([*self._replicas.values(), *self._leaving])
        self._threads.shutdown(wait=False)

    async def _close(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            self._leaving.discard(replica)
            await replica.session.close()

    def tell(self) -> tuple[dict[str, int], dict[str, float]]:
        """What other gateways should know: requests at each engine, and for how many seconds which is excluded."""
        replicas = [*self._replicas.values(), *self._leaving]
        loads = {r.row.id: r.in_flight for r in replicas if r.in_flight}
        return loads, {r.row.id: r.ejected_for_s for r in replicas if r.ejected_for_s}

    def count(self) -> None:
        """Bring the gauge of replicas up to date."""
        states = Counter(
            (r.row.model, "ready" if not r.ejected and self._takes_requests(r) else "ejected")
            for r in self._replicas.values()
        )
        self._metrics.count_replicas(states)

    def rows(self) -> list[ReadyReplica]:
        """The ready replicas, oldest first."""
        return sorted((r.row for r in self._replicas.values()), key=lambda row: (row.started_at, row.id))

    def known_model(self, ref: str) -> str | None:
        """The model's name if `ref` (`name` or `name@version`) runs here; safe as a metric label."""
        matching = self._matching(ref)
        return matching[0].row.model if matching else None

    def choose(self, ref: str, task: str, tried: Replica | None = None) -> Replica:
        """The least busy replica, the longest idle of equals, other than the one already tried. Raises ModelNotFound, InvalidInput, NoBackend."""
        matching = self._matching(ref)
        if not matching and ref.partition("@")[0] in self._awaited:
            raise NoBackend("The model's engine is starting. Try again shortly.", retry_after_s=1)
        if not matching:
            raise ModelNotFound(self._missing(ref), param="model")
        able = [r for r in matching if r.row.task == task]
        if not able:
            needs = "text generation" if task == "generate" else "embeddings"
            raise InvalidInput(f"The model '{matching[0].row.model}' does not offer {needs}.", param="model")
        others = [r for r in able if r is not tried]
        free = [r for r in others if self._takes_requests(r)]
        if not free:
            pause_s = min((r.ejected_for_s for r in others), default=1.0)
            raise NoBackend("The model's engine is not answering. Try again shortly.", retry_after_s=pause_s)
        return min(free, key=lambda r: (self._load(r), r.last_used))

    def _takes_requests(self, replica: Replica) -> bool:
        return replica.takes_requests() and not (self._shared and self._shared.excludes(replica.row.id))

    def _load(self, replica: Replica) -> int:
        """Requests that the replica works on, of all gateways."""
        return replica.in_flight + (self._shared.load(replica.row.id) if self._shared else 0)

    def _matching(self, ref: str) -> list[Replica]:
        replicas = self._replicas.values()
        return [r for r in replicas if r.row.model == ref] or [r for r in replicas if r.name == ref]

    def _missing(self, ref: str) -> str:
        names = sorted({r.row.model for r in self._replicas.values()})
        offered = f"Models here: {', '.join(names[:20])}." if names else "No model is being served."
        return f"The model '{ref[:64]}' does not exist or is not being served. {offered}"
