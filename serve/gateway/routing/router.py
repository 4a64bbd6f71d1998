"""Chooses the replica for a request: of a model's healthy replicas, the one where the request costs least.

Each request in flight at a replica counts as much as `LOAD_BLOCKS` prompt blocks that it has not cached.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from everlearn.errors import EverlearnError, InvalidInput
from everlearn.registry.records import CANARY, CHAMPION, SHADOW
from everlearn.settings import Remote
from serve.gateway.http.failures import GivenUp, ModelNotFound, NoBackend
from serve.gateway.http.metrics import Metrics
from serve.gateway.routing.prefixes import blocks
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.work import Work
from serve.replicas import ReadyReplica, State, absent_models, ready_replicas

if TYPE_CHECKING:
    from serve.gateway.limits.shared import Shared

POLL_S = 0.25
PROBE_S = 5.0
LOAD_BLOCKS = 4
RETRY_SHARE = 0.1
RETRY_RESERVE = 10.0

log = structlog.get_logger()


class RetryBudget:
    """Limits retries to a tenth of the traffic, so that failures cannot multiply the load."""

    def __init__(self) -> None:
        self._left = RETRY_RESERVE

    def earn(self) -> None:
        """Count a request, which earns a tenth of a retry."""
        self._left = min(RETRY_RESERVE, self._left + RETRY_SHARE)

    def spend(self) -> bool:
        """Whether one more retry is allowed; counts it."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


TASK_NAMES = {
    "generate": "text generation",
    "text2text": "text generation",
    "embed": "embeddings",
    "image_text": "embeddings of images",
    "classify": "classification",
    "score": "scores of pairs",
    "token_classify": "token classification",
    "question_answer": "answers from a text",
}


class Router:
    """Follows the ready replicas by polling their table, and probes remote servers."""

    def __init__(
        self, db: Engine, metrics: Metrics, shared: "Shared | None" = None, remotes: Sequence[Remote] = ()
    ) -> None:
        self.budget = RetryBudget()
        self._db = db
        self._metrics = metrics
        self._shared = shared
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="replicas")
        self._replicas: dict[tuple[str, float], Replica] = {}
        self._remote_settings = remotes
        self._remotes: list[Replica] = []
        self._leaving: set[Replica] = set()
        self._readable = True
        self._absent: dict[str, State] = {}

    async def watch(self) -> None:
        """Follow the table. Runs until cancelled."""
        self._remotes = [Replica.remote(remote) for remote in self._remote_settings]
        probing = [asyncio.create_task(self._probe(remote)) for remote in self._remotes]
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(POLL_S)
        finally:
            for each in probing:
                each.cancel()

    async def _probe(self, remote: Replica) -> None:
        while True:
            await remote.probe()
            await asyncio.sleep(PROBE_S)

    async def refresh(self) -> None:
        """Read the table once; while the database is unavailable, the last known replicas stay."""
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._threads, ready_replicas, self._db)
            self._absent = await loop.run_in_executor(self._threads, absent_models, self._db)
        except SQLAlchemyError as error:
            if self._readable:
                log.error("replicas_unreadable", error=type(error).__name__)
            self._readable = False
            return
        self._readable = True
        known = {(row.id, row.started_at): row for row in rows}
        for key in known.keys() - self._replicas.keys():
            self._replicas[key] = Replica.local(known[key])
            log.info("replica_found", replica=self._replicas[key].name, id=key[0])
        for key, row in known.items():
            self._replicas[key].row = row  # a trial's share may have changed
        for key in self._replicas.keys() - known.keys():
            replica = self._replicas.pop(key)
            self._leaving.add(replica)
            log.info("replica_gone", replica=replica.name, id=key[0])
        await self._close(replica for replica in list(self._leaving) if replica.in_flight == 0)

    async def close(self) -> None:
        """Close every connection."""
        await self._close([*self._replicas.values(), *self._leaving, *self._remotes])
        self._threads.shutdown(wait=False)

    async def _close(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            self._leaving.discard(replica)
            await replica.session.close()

    def tell(self) -> tuple[dict[str, int], dict[str, float]]:
        """For other gateways: requests at each engine, and the excluded engines with the seconds that remain."""
        replicas = [*self._present(), *self._leaving]
        loads = {r.row.id: r.in_flight for r in replicas if r.in_flight}
        return loads, {r.row.id: r.ejected_for_s for r in replicas if r.ejected_for_s}

    def count(self) -> None:
        """Update the gauge of replicas."""
        ejected = self.ejected()
        states = Counter(
            (r.row.model, "ejected" if r.row.id in ejected else "ready")
            for r in self._present()
            if r.row.role == CHAMPION
        )
        self._metrics.count_replicas(states)

    def rows(self) -> list[ReadyReplica]:
        """The ready replicas that answer for their model's name, oldest first."""
        rows = (replica.row for replica in self._present() if replica.row.role == CHAMPION)
        return sorted(rows, key=lambda row: (row.started_at, row.id))

    def failed(self) -> list[str]:
        """The models that should be served and whose engines have been given up."""
        serving = {row.model for row in self.rows()}
        return sorted(
            model for model, state in self._absent.items() if state == "failed" and model not in serving
        )

    def loads(self) -> dict[str, int]:
        """Requests of all gateways at each replica, by its id."""
        return {replica.row.id: self._load(replica) for replica in self._present()}

    def ejected(self) -> set[str]:
        """The ids of the replicas that get no requests now because they failed too often."""
        return {r.row.id for r in self._present() if r.ejected or not self._takes_requests(r)}

    def remotes(self) -> Sequence[Replica]:
        """Remote servers' models, reachable or not."""
        return self._remotes

    def known_model(self, ref: str) -> str | None:
        """The model's name if `ref` (`name` or `name@version`) runs here; safe as a metric label."""
        matching = self._matching(ref)
        return matching[0].row.model if matching else None

    def choose(self, work: Work, tried: Replica | None = None) -> Replica:
        """The cheapest replica, the longest idle of equals, other than the one already tried.

        Raises ModelNotFound, InvalidInput, NoBackend.
        """
        matching = (tried is None and self._drawn(work, CANARY)) or self._matching(work.model)
        if not matching:
            raise self._missing(work.model)
        able = [r for r in matching if r.row.task in work.tasks]
        if not able:
            row = matching[0].row
            needs = " or ".join(dict.fromkeys(TASK_NAMES[task] for task in work.tasks))
            raise InvalidInput(f"The model '{row.model}' does not offer {needs}.", param="model")
        others = [r for r in able if r is not tried]
        free = [r for r in others if self._takes_requests(r)]
        if not free:
            pause_s = min((r.ejected_for_s for r in others), default=1.0)
            raise NoBackend("The model's engine is not answering. Try again shortly.", retry_after_s=pause_s)
        if len(free) == 1:
            return free[0]
        prompt = blocks(work.body)
        best = min(free, key=lambda r: (self._load(r) * LOAD_BLOCKS + r.prefixes.unread(prompt), r.last_used))
        best.prefixes.add(prompt)
        return best

    def _present(self) -> list[Replica]:
        return [*self._replicas.values(), *(remote for remote in self._remotes if remote.here)]

    def shadow_of(self, work: Work) -> Replica | None:
        """The engine that gets a copy of the work, if any."""
        return next(iter(self._drawn(work, SHADOW)), None)

    def _drawn(self, work: Work, role: str) -> list[Replica]:
        """The engines of the model's version on trial, if this request is drawn for it."""
        found = [
            r
            for r in self._present()
            if (r.row.model, r.row.role) == (work.model, role)
            and r.row.task in work.tasks
            and self._takes_requests(r)
        ]
        return found if found and random.random() < found[0].row.share else []

    def _takes_requests(self, replica: Replica) -> bool:
        return replica.takes_requests() and not (self._shared and self._shared.excludes(replica.row.id))

    def _load(self, replica: Replica) -> int:
        """Requests of all gateways in flight at the replica."""
        return replica.in_flight + (self._shared.load(replica.row.id) if self._shared else 0)

    def _matching(self, ref: str) -> list[Replica]:
        replicas = self._present()
        named = [r for r in replicas if r.row.model == ref and r.row.role == CHAMPION]
        return named or [r for r in replicas if r.name == ref]

    def _missing(self, ref: str) -> EverlearnError:
        """The error that says why a model or version has no engine."""
        model = ref.partition("@")[0]
        state = self._absent.get(model)
        if state == "starting" or any(remote.row.model == model for remote in self._remotes):
            return NoBackend("The model's engine is starting. Try again shortly.", retry_after_s=1)
        if state == "failed" and not any(row.model == model for row in self.rows()):
            return GivenUp(f"No engine of the model '{model[:64]}' stays up; `everlearn ps` says why.")
        names = sorted({r.row.model for r in self._present()})
        offered = f"Models here: {', '.join(names[:20])}." if names else "No model is being served."
        return ModelNotFound(
            f"The model '{ref[:64]}' does not exist or is not being served. {offered}", param="model"
        )
