"""One model that is served: the version that should serve, the one that does, and the steps from one to the other.

`ServedModel` compares the two again and again and takes one step at a time, so it does not matter what came between:
the alias moved on or back, an engine died, the database was away. The way from old to new:

    start the new engine beside the old → it loads → it passes its warm-up → in one transaction the new one takes
    requests and the old one takes none → the old one ends its running answers → it stands by, or stops.

Where memory allows, the version that served before stands by: loaded, without requests, so that going back to it is
the transaction alone. It makes way before another version is started.

A version on trial has a `ServedModel` of its own, which follows the alias canary or shadow and ends with it.

A version that does not load or fails its warm-up is refused: the old one serves on, the reason stands in the
`replicas` table (`everlearn ps`) and in the log, and it is tried again when the alias is moved, or set anew.

From the start of the new engine to the end of the old one both are in memory. Where there is room for one alone, the
new one fails to load and is refused; restart `everlearn serve` then, which comes up on the champion.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from everlearn.errors import Conflict, EverlearnError, Unavailable
from everlearn.registry.database import read
from everlearn.registry.records import CHAMPION, PREVIOUS
from everlearn.registry.tables import AliasRow
from serve.supervisor.launcher import EngineLauncher, RunningEngine

FOLLOW_S = 0.5
"""Between two looks at the aliases of a model."""

log = structlog.get_logger("serve.supervisor")


class Standing(NamedTuple):
    """What the aliases of a model name: the version that should serve, what may stand in, and when that was set."""

    named: int | None
    previous: int | None
    set_at: float


@dataclass(frozen=True)
class Refusal:
    """Why a version does not serve, and the row that says so."""

    reason: str
    row_id: str


class ServedModel:
    """One model, kept at the version that its alias `role` names; or at version `first` for ever, when it is pinned.

    When the champion is refused while nothing else serves, as after a restart, the `previous` one serves. A canary
    or a shadow is not replaced, and none runs while the alias is not set.
    """

    def __init__(
        self, launcher: EngineLauncher, model: str, first: int | None = None, *, pinned: bool = False,
        role: str = CHAMPION, beside: "ServedModel | None" = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.role = role
        self.serving: RunningEngine | None = None
        self.settled = asyncio.Event()
        """Set once a version serves, or none can."""
        self._launcher = launcher
        self._beside = beside
        """Of a trial: who serves. Before that one does, none is started."""
        self._pinned = pinned
        self._first = first
        self._standing = Standing(None, None, 0.0)
        self._refused: dict[int, Refusal] = {}
        self._coming: RunningEngine | None = None
        self._standby: RunningEngine | None = None
        self._waits_for = ""
        self._leaving: dict[asyncio.Task[None], RunningEngine] = {}

    async def keep(self) -> None:
        """Compare, take a step, wait. Runs until cancelled."""
        while True:
            await self._step()
            await self._until_news()

    async def close(self) -> None:
        """Stop every engine of this model; the gateway has ended before."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*(running.stop() for running in self.processes()))
        for number in list(self._refused):
            await self._forgive(number)

    def processes(self) -> list[RunningEngine]:
        present = filter(None, [self.serving, self._coming, self._standby])
        return list(dict.fromkeys([*present, *self._leaving.values()]))

    def hopeless(self) -> str | None:
        """Why no version of this model can serve; None if one does or may."""
        if self.serving or self._coming or self._wanted() is not None:
            return None
        return "\n".join(
            f"{self.model}@{number} {refusal.reason}" for number, refusal in self._refused.items()
        )

    # The steps -------------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        await self._read_aliases()
        self._refuse_the_failed()
        wanted = self._wanted()
        if self._coming and self._coming.stands_for != wanted:
            log.info("swap called off", ref=self._coming.version.ref)
            coming, self._coming = self._coming, None
            await coming.stop()
        if wanted is None:
            self._let_go(self.serving)
            self.serving = None
            self.settled.set()
        elif self.serving and self.serving.stands_for == wanted:
            self.settled.set()
        elif self._coming is None:
            if not self._wake(wanted):
                await self._begin(wanted)
        elif self._coming.watched.state == "ready" and await self._coming.take_over(self.serving):
            old, self.serving, self._coming = self.serving, self._coming, None
            self._let_go(old, keep=self.role == CHAMPION and old is not None and old.may_stand_by())
            log.info("serving", ref=self.serving.version.ref, role=self.role)
            self.settled.set()

    async def _read_aliases(self) -> None:
        if self._pinned:
            return
        try:
            standing = await asyncio.to_thread(read_standing, self._launcher.db, self.model, self.role)
        except (SQLAlchemyError, EverlearnError):
            return  # the last known one holds; the heartbeats tell the log
        if standing.set_at != self._standing.set_at:
            for number in list(self._refused):
                await self._forgive(number)
        self._standing = standing

    def _refuse_the_failed(self) -> None:
        serving, coming = self.serving, self._coming
        if self._standby and self._standby.ended_in_standby:  # another one is not started for nothing
            self._dismiss_standby()
        if serving and serving.watched.state == "failed":
            self.serving = None
            self._refuse(serving.stands_for, Refusal(serving.watched.reason, serving.id))
        if coming and coming.watched.state == "failed":
            self._coming = None
            self._refuse(coming.stands_for, Refusal(coming.watched.reason, coming.id))

    def _wanted(self) -> int | None:
        """The number of the version that should serve; None when nothing can."""
        if self.role != CHAMPION:
            named = self._standing.named
            return named if named not in self._refused else None
        present = self.serving.stands_for if self.serving else self._first
        named = self._standing.named or present
        if named not in self._refused:
            return named
        if self.serving:
            return present
        previous = self._standing.previous
        return previous if previous not in self._refused else None

    def _wake(self, number: int) -> bool:
        """Whether the engine that stands by is of this version; then it is the one that comes. Else it makes way."""
        standby = self._standby
        if standby is None or standby.stands_for != number or standby.watched.state != "ready":
            self._dismiss_standby()
            return False
        self._standby = None
        for task, old in self._leaving.items():
            if old is standby:  # it was just about to hand over
                task.cancel()
        self._coming = standby
        return True

    async def _begin(self, number: int) -> None:
        if self._beside and not self._beside.serving:
            return
        try:
            version = await self._launcher.servable(self.model, number)
            await self._read_aliases()
            if version.version == self._wanted():  # the first servable version becomes champion as it is made
                number = version.version
            if self.serving and version.ref == self.serving.version.ref:
                self.serving.stands_for = number
                return
            champion = self._beside.serving if self._beside else None
            if champion and champion.version.ref == version.ref:
                raise Conflict(
                    f"is served as {version.ref}, which serves already: there is nothing to try out"
                )
            log.info(
                "starting", ref=version.ref, role=self.role, beside=self.serving and self.serving.version.ref
            )
            self._coming = await self._launcher.start(version, number, self.role)
        except Unavailable as error:
            if error.message != self._waits_for:
                log.warning("waiting", ref=f"{self.model}@{number}", reason=error.message)
            self._waits_for = error.message
        except EverlearnError as error:
            row_id = await self._launcher.record_failure(self.model, number, self.role, error.message)
            self._refuse(number, Refusal(error.message, row_id))

    def _let_go(self, old: RunningEngine | None, *, keep: bool = False) -> None:
        """It serves no more: it hands over, and then stands by or stops."""
        if old and keep:
            self._dismiss_standby()
            self._standby = old
        if old:
            self._later(self._retire(old), old)

    async def _retire(self, old: RunningEngine) -> None:
        await old.hand_over()
        await (old.stand_by() if old is self._standby else old.drain())

    def _dismiss_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby and standby not in self._leaving.values():  # one that hands over sees it by itself
            self._later(standby.drain(), standby)

    def _later(self, work: Coroutine[Any, Any, None], old: RunningEngine) -> None:
        task = asyncio.create_task(work)
        self._leaving[task] = old
        task.add_done_callback(self._leaving.pop)

    async def _until_news(self) -> None:
        """A moment; a shorter one when the coming engine is ready or given up before."""
        news = self._coming.watched.settled if self._coming else None
        if news is None or news.is_set():
            await asyncio.sleep(FOLLOW_S)
            return
        waiting = asyncio.create_task(news.wait())
        await asyncio.wait({waiting}, timeout=FOLLOW_S)
        waiting.cancel()

    # Refusals --------------------------------------------------------------------------------------------------

    def _refuse(self, number: int, refusal: Refusal) -> None:
        self._refused[number] = refusal
        log.error(
            "version refused", ref=f"{self.model}@{number}", role=self.role, reason=refusal.reason.splitlines()[0],
            serving=self.serving and self.serving.version.ref,
        )  # fmt: skip

    async def _forgive(self, number: int) -> None:
        await self._launcher.remove_failure(self._refused.pop(number).row_id)


def read_standing(db: Engine, model: str, role: str) -> Standing:
    """Raises Unavailable. A version that is champion needs no second engine to be tried out."""
    query = select(AliasRow.alias, AliasRow.version, AliasRow.updated_at).where(AliasRow.model == model)
    with read(db) as connection:
        rows = {row.alias: row for row in connection.execute(query)}
    champion, named = rows.get(CHAMPION), rows.get(role)
    if named and champion and role != CHAMPION and named.version == champion.version:
        named = None
    previous = rows.get(PREVIOUS) if role == CHAMPION else None
    return Standing(
        named.version if named else None,
        previous.version if previous else None,
        named.updated_at if named else 0.0,
    )
