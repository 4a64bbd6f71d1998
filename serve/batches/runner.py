"""Works on batches: engines answer every line of a file once, and the answers become files.

Each request asks for the tier ``flex``, so interactive requests come first. If a runner is killed, another continues
with the lines that have no answer yet: at most the requests in flight are sent again, whose answers had not been kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self
from uuid import uuid4

import orjson
import structlog
from sqlalchemy.orm import Session

from continual.queue.files import BATCH_OUTPUT, Client, Files
from continual.queue.owner import SignsOfLife, is_gone, this_process
from everlearn.errors import EverlearnError, NotFound, Unavailable
from everlearn.registry.database import read
from everlearn.registry.keys import why_ended
from everlearn.registry.tables import ApiKey
from everlearn.settings import Settings
from serve.batches.lines import CheckedLine, Flaw, check, read_lines
from serve.batches.table import Answer, Batch, Batches, Ending, Lease, LeaseLost, set_file
from serve.gateway.formats.schema_check import SchemaCheckPool, StrictAnswerCheck
from serve.gateway.http.exchange import Exchange
from serve.gateway.http.failures import (
    BackendFailed,
    BackendTimeout,
    BrokeOff,
    ModelNotFound,
    NoBackend,
    Overloaded,
    describe,
)
from serve.gateway.limits.meter import Meter
from serve.gateway.routing.dispatch import Dispatcher
from serve.gateway.routing.relay import WHOLE_ANSWER_FACTOR, usage_in

POLL_S = 1.0
SAVE_EVERY_S = 0.5
AT_ONCE = 4
"""Batches at the same time, so that a small one need not wait for a large one."""
MISSING_S = 60.0
"""A model that no engine serves for this long counts as missing; engines may still be starting."""
BROKEN_ATTEMPTS = 2
DYING_S = 1.0
"""A dying engine may accept connections for this long, and the next request would be blamed for its end."""
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
OUTPUT_LIMIT_BYTES = 64 * 1024**3

log = structlog.stdlib.get_logger("serve.batches")


class KeyEnded(NotFound):
    """The key that created a batch is no longer valid."""

    code = "key_not_valid"


class Runner:
    """Takes batches that no other runner works on, until it is stopped."""

    def __init__(self, settings: Settings, batches: Batches, dispatcher: Dispatcher, meter: Meter) -> None:
        self.settings = settings
        self.batches = batches
        self.files = Files(settings, batches.database)
        self.dispatcher = dispatcher
        self.meter = meter
        self.places = asyncio.Semaphore(settings.serve.batch_requests)
        self.checks = SchemaCheckPool()
        self.turned_s = time.monotonic()
        self._suspects = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._signs = SignsOfLife()
        self._missing: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop``; batches in progress are then left to the next runner."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                with suppress(Unavailable):
                    await self._take()
                self.turned_s = time.monotonic()
                await asyncio.wait({stopping}, timeout=POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _take(self) -> None:
        for id in [id for id, task in self._running.items() if task.done()]:
            if error := self._running.pop(id).exception():
                log.error("a batch's work broke", batch=id, error=repr(error))
        unfinished = await asyncio.to_thread(self.batches.open)
        self._signs.keep({batch.id for batch in unfinished})
        for batch in unfinished:
            if len(self._running) == AT_ONCE:
                return
            if batch.id in self._running or not self._is_abandoned(batch):
                continue
            if lease := await asyncio.to_thread(self.batches.claim, batch, this_process()):
                self._running[batch.id] = asyncio.create_task(self._work(lease))

    def _is_abandoned(self, batch: Batch) -> bool:
        """Nobody's, or its runner is gone, or gave no sign of life for longer than a lease, by our own clock."""
        if batch.lease_owner is None or is_gone(batch.lease_owner):
            return True
        return self._signs.silent_s(batch.id, (batch.fence, batch.beats)) > self.settings.continual.lease_s

    async def _work(self, lease: Lease) -> None:
        """A batch to its end, or to the end of the lease. What another attempt may mend is left to it."""
        halted = asyncio.Event()
        beating = asyncio.create_task(self._beat(lease, halted))
        working = asyncio.create_task(self._through(lease, halted))
        try:
            await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            else:
                beating.result()
        except KeyEnded as ended:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            with suppress(LeaseLost):
                await self._fail(lease, [_batch_error(ended)])
        except LeaseLost as lost:
            log.warning("lost a batch", batch=lease.batch_id, reason=lost.message)
        except (Unavailable, OSError) as error:
            log.warning("a batch is left for later", batch=lease.batch_id, reason=str(error))
            await asyncio.sleep(POLL_S)
            await self._release(lease)
        except asyncio.CancelledError:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await self._release(lease)
            raise
        finally:
            beating.cancel()
            working.cancel()
            await asyncio.gather(beating, working, return_exceptions=True)

    async def _release(self, lease: Lease) -> None:
        with suppress(LeaseLost, Unavailable):
            await asyncio.to_thread(self.batches.release, lease)

    async def _beat(self, lease: Lease, halted: asyncio.Event) -> None:
        """Keeps the lease, and hears when the batch is cancelled. Ends when the lease is lost. Raises KeyEnded."""
        last_s = time.monotonic()
        while time.monotonic() - last_s < self.settings.continual.lease_s:
            try:
                batch = await asyncio.to_thread(self.batches.beat, lease)
                if batch.ending is None and batch.state != "cancelling":
                    await asyncio.to_thread(self._key, batch)
            except LeaseLost:
                return
            except Unavailable:
                pass
            else:
                last_s = time.monotonic()
                if batch.state == "cancelling":
                    halted.set()
            await asyncio.sleep(min(POLL_S, self.settings.continual.heartbeat_s))

    async def _through(self, lease: Lease, halted: asyncio.Event) -> None:
        batch = await asyncio.to_thread(self.batches.get, lease.batch_id)
        if batch.ending is None:
            ending = await self._answer(batch, lease, halted)
            if ending is None:
                return
            batch = await asyncio.to_thread(self.batches.finalize, lease, ending)
        await asyncio.to_thread(self._write_files, lease)
        await asyncio.to_thread(self.batches.finish, lease, batch.ending or "completed")

    async def _answer(self, batch: Batch, lease: Lease, halted: asyncio.Event) -> Ending | None:
        """Checks the file, then has every line answered; None where the batch failed for its file. Raises KeyEnded."""
        if batch.state == "cancelling":
            return "cancelled"
        try:
            path = self.files.path(await asyncio.to_thread(self.files.get, batch.input_file))
            key = await asyncio.to_thread(self._key, batch)
        except EverlearnError as error:
            if isinstance(error, Unavailable):
                raise
            await self._fail(lease, [_batch_error(error)])
            return None
        if batch.started_at is None:
            found = await asyncio.to_thread(check, path, batch.endpoint, key, self.settings.serve)
            if not isinstance(found, int):
                await self._fail(lease, found)
                return None
            await asyncio.to_thread(self.batches.begin, lease, found)
        answered = await asyncio.to_thread(self.batches.answered, batch.id)
        async with Saver(self.batches, lease) as saver, asyncio.TaskGroup() as under_way:
            for line in read_lines(path, batch.endpoint, key, self.settings.serve):
                if line.number in answered:
                    continue
                if isinstance(line, Flaw):  # since the file was checked, its key lost a scope or a limit fell
                    saver.add(Answer(line.number, True, _output_line(None, None, line.as_error())))
                    continue
                if time.time() >= batch.expires_at:
                    saver.add(_expired(line))
                    continue
                await self.places.acquire()
                if halted.is_set():
                    self.places.release()
                    break
                under_way.create_task(self._ask(line, batch, saver, halted))
        if halted.is_set():
            await asyncio.to_thread(self._key, batch)  # its end is another reason than being cancelled
            return "cancelled"
        return "expired" if time.time() >= batch.expires_at else "completed"

    async def _ask(self, line: CheckedLine, batch: Batch, saver: Saver, halted: asyncio.Event) -> None:
        """One answer; a busy or restarting engine is asked again, until the batch's time is over, or its key has ended."""
        exchange = Exchange(id="")
        try:
            answer = await self._answered(line, batch, exchange)
        except KeyEnded:
            halted.set()
            return
        finally:
            self.places.release()
        exchange.error = "failed" if answer.failed else None
        self.meter.count(exchange)
        saver.add(answer)

    async def _answered(self, line: CheckedLine, batch: Batch, exchange: Exchange) -> Answer:
        """When an engine dies, any of the requests it had may be why: they are sent again one at a time."""
        broken = turns = 0
        while time.time() < batch.expires_at:
            exchange.id = f"req_{uuid4().hex}"
            try:
                exchange.key = await asyncio.to_thread(self._key, batch)
                self.meter.admit(exchange.key)
                return await (self._alone(line, exchange) if broken else self._whole(line, exchange))
            except (BackendFailed, BackendTimeout, BrokeOff) as error:
                broken += 1
                if broken == BROKEN_ATTEMPTS:
                    return _refused(line, exchange, error)
            except KeyEnded:
                raise
            except (Overloaded, NoBackend, Unavailable):
                pass
            except ModelNotFound as error:
                since_s = self._missing.setdefault(line.work.model, time.monotonic())
                if time.monotonic() - since_s > MISSING_S:
                    return _refused(line, exchange, error)
            except EverlearnError as error:
                return _refused(line, exchange, error)
            await asyncio.sleep(PAUSES_S[min(turns, len(PAUSES_S) - 1)])
            turns += 1
        return _expired(line)

    async def _alone(self, line: CheckedLine, exchange: Exchange) -> Answer:
        async with self._suspects:
            try:
                return await self._whole(line, exchange)
            except BrokeOff:
                await asyncio.sleep(DYING_S)
                raise

    async def _whole(self, line: CheckedLine, exchange: Exchange) -> Answer:
        limit_s = self.settings.serve.first_token_timeout_s * WHOLE_ANSWER_FACTOR
        try:
            async with asyncio.timeout(limit_s):
                reply = await self.dispatcher.open(line.work, exchange)
        except TimeoutError:
            raise BackendTimeout("The model's engine did not answer in time.") from None
        reply.close()
        exchange.usage = usage_in(reply.first)
        self._missing.pop(line.work.model, None)
        if line.work.strict:
            check = StrictAnswerCheck(line.work.strict, self.checks)
            await check.check_whole(reply.first, trusted=reply.replica.follows_grammars)
        return _answer(line, exchange, 200, reply.first, reply.replica.name)

    def _key(self, batch: Batch) -> ApiKey | None:
        """The key that made the batch, as it is now. Raises KeyEnded, Unavailable."""
        with read(self.batches.database) as connection:
            if why := why_ended(connection, batch.key_id):
                raise KeyEnded(f"the batch was ended, since {why}")
            if batch.key_id is None:
                return None
            with Session(connection, expire_on_commit=False) as session:
                return session.get(ApiKey, batch.key_id)

    async def _fail(self, lease: Lease, errors: Sequence[dict[str, Any]]) -> None:
        await asyncio.to_thread(self.batches.finish, lease, "failed", errors)

    def _write_files(self, lease: Lease) -> None:
        """Write the file of answers and that of errors, each if there are any, and each once."""
        batch = self.batches.get(lease.batch_id)
        for kind, failed, count, written in (
            ("output_file", False, batch.completed, batch.output_file),
            ("error_file", True, batch.failed, batch.error_file),
        ):
            if not count or written:
                continue
            name = f"{batch.id}_{kind.removesuffix('_file')}.jsonl"
            with self.files.uploading(OUTPUT_LIMIT_BYTES) as upload:
                for content in self.batches.contents(batch.id, failed=failed):
                    upload.write(content.encode() + b"\n")
                self.files.keep(
                    upload, name, purpose=BATCH_OUTPUT, client=Client(batch.key_id),
                    within=lambda connection, file, kind=kind: set_file(connection, lease, kind, file.id),
                )  # fmt: skip


class Saver:
    """Collects answers and saves them twice per second: one transaction per answer would wait for the disk each time."""

    def __init__(self, batches: Batches, lease: Lease) -> None:
        self._batches = batches
        self._lease = lease
        self._waiting: list[Answer] = []

    def add(self, answer: Answer) -> None:
        self._waiting.append(answer)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._save_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._save()

    async def _save_on(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            with suppress(Unavailable):
                await self._save()

    async def _save(self) -> None:
        """Raises LeaseLost, Unavailable; what was not kept waits on."""
        answers, self._waiting = self._waiting, []
        saving = asyncio.ensure_future(asyncio.to_thread(self._batches.save, self._lease, answers))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            await asyncio.gather(saving, return_exceptions=True)
            raise
        except Unavailable:
            self._waiting = [*answers, *self._waiting]
            raise


def _batch_error(error: EverlearnError) -> dict[str, Any]:
    return {"code": error.code, "line": None, "message": error.message, "param": None}


def _answer(line: CheckedLine, exchange: Exchange, status: int, body: bytes, version: str | None) -> Answer:
    """``version``: an extension, which version of the model answered. Raises BackendFailed for what is no JSON."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BackendFailed("The model's engine sent no valid answer.") from None
    response = {"status_code": status, "request_id": exchange.id, "body": said, "version": version}
    return Answer(line.number, status != 200, _output_line(line.custom_id, response, None))


def _refused(line: CheckedLine, exchange: Exchange, error: EverlearnError) -> Answer:
    status, body = describe(error)
    return _answer(line, exchange, status, orjson.dumps(body), None)


def _expired(line: CheckedLine) -> Answer:
    error = {
        "code": "batch_expired",
        "message": "The batch's time was over before this request was answered.",
    }
    return Answer(line.number, True, _output_line(line.custom_id, None, error))


def _output_line(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    told = {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(told).decode()
