"""The response that passes on an engine's answer: the hot path.

It is a plain ASGI response, so that per chunk nothing runs between the engine's socket and the client's.
"""

import asyncio
import json
from typing import Any

from aiohttp import ClientError, ClientPayloadError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from everlearn.errors import EverlearnError
from everlearn.settings import ServeSettings
from serve.gateway.formats.schema_check import LIMIT_S, SchemaCheckPool, SchemaViolation, StrictAnswerCheck
from serve.gateway.formats.translator import MalformedAnswer, Translator
from serve.gateway.http.answer_watcher import AnswerWatcher, Reason, Stopped
from serve.gateway.http.exchange import Exchange
from serve.gateway.http.failures import BackendFailed, BackendTimeout, Draining
from serve.gateway.http.metrics import Metrics
from serve.gateway.http.middleware import CLIENT_GONE
from serve.gateway.routing.dispatch import Dispatcher
from serve.gateway.routing.events import BrokenStream, EngineError
from serve.gateway.routing.reply import AttemptFailed, Reply
from serve.gateway.routing.work import Work

WHOLE_ANSWER_FACTOR = 5
"""An answer that is not streamed has no visible first token: it may take this many times the limit for one."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
LAST_WORD_S = 5.0
MAX_USAGE_BYTES = 4096
SPARE_S = 1.0


class Relay(Response):
    """Dispatches its work when the server sends it, and enforces the time limits."""

    def __init__(
        self, work: Work, exchange: Exchange, dispatcher: Dispatcher, settings: ServeSettings, metrics: Metrics,
        watchers: set[AnswerWatcher], translator: Translator, checks: SchemaCheckPool,
    ) -> None:  # fmt: skip
        self.background = None
        self.status_code = 200
        self._work = work
        self._exchange = exchange
        self._dispatcher = dispatcher
        self._first_token_timeout_s = settings.first_token_timeout_s
        self._inter_token_timeout_s = settings.inter_token_timeout_s
        self._watchers = watchers
        self._translator = translator
        self._strict = StrictAnswerCheck(work.strict, checks) if work.strict else None
        self._uncounted = False
        self._waiting = metrics.waiting.labels(exchange.model)
        self._metrics = metrics
        self._first_token = metrics.first_token.labels(exchange.model)
        self._inter_token = metrics.inter_token.labels(exchange.model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit_s = self._first_token_timeout_s * (1 if self._work.stream else WHOLE_ANSWER_FACTOR)
        watcher = AnswerWatcher(receive, limit_s)
        self._watchers.add(watcher)
        try:
            async with watcher:
                await self._answer(watcher, send)
        except Stopped as stopped:
            await self._stopped(stopped.reason, scope, send)
        finally:
            self._watchers.discard(watcher)
            if self._uncounted:
                await self._count_what_was_done()

    async def _answer(self, watcher: AnswerWatcher, send: Send) -> None:
        with self._waiting.track_inprogress():
            reply = await self._dispatcher.open(self._work, self._exchange)
        self._translator.start(reply.facts)
        try:
            await (self._stream if self._work.stream else self._whole)(reply, watcher, send)
        finally:
            reply.close()

    async def _whole(self, reply: Reply, watcher: AnswerWatcher, send: Send) -> None:
        self._exchange.usage = usage_in(reply.first)
        self._uncounted = self._exchange.usage is None and self._exchange.cost.tokens > 0
        if self._strict:
            watcher.limit(LIMIT_S + SPARE_S)
            await self._strict.check_whole(reply.first, trusted=reply.replica.follows_grammars)
        try:
            body = self._translator.whole(reply.first)
        except MalformedAnswer:
            raise BackendFailed("The model's engine sent no valid answer.") from None
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        watcher.sending = True
        watcher.limit(self._inter_token_timeout_s)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, reply: Reply, watcher: AnswerWatcher, send: Send) -> None:
        self._exchange.first_token_s = self._exchange.elapsed_s()
        self._first_token.observe(self._exchange.first_token_s)
        self._metrics.first_token_of(reply.replica, self._exchange.first_token_s)
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        try:
            await self._pass_on(reply, watcher, send)
        except EngineError as event:
            error = reply.refusal(event.error)
            await self._break(
                send, error.error if isinstance(error, AttemptFailed) else error, reply.events.passed
            )
        except (BrokenStream, MalformedAnswer):
            reply.replica.failed()
            await self._break(
                send, BackendFailed("The model's engine sent a broken stream."), reply.events.passed
            )
        except SchemaViolation as violation:
            await self._break(send, violation, violation.passed)
        except ClientError:
            reply.replica.failed()
            await self._break(send, BackendFailed("The model's engine stopped in the middle of the answer."))
        finally:
            events = reply.events
            left = {"prompt_tokens": reply.facts.prompt_tokens, "completion_tokens": events.events}
            self._exchange.usage = events.usage or left
            self._uncounted = events.usage is None

    async def _pass_on(self, reply: Reply, watcher: AnswerWatcher, send: Send) -> None:
        """The hot loop: per chunk one read, one check, one write."""
        events, translate, observe = reply.events, self._translator.events, self._inter_token.observe
        timeout_s = self._inter_token_timeout_s
        clock = asyncio.get_running_loop().time
        watcher.limit(timeout_s)
        whole, last, count = reply.first, clock(), events.events
        while True:
            if whole:
                if self._strict:
                    watcher.deadline += LIMIT_S + SPARE_S
                    await self._strict.check_events(whole, trusted=reply.replica.follows_grammars)
                watcher.sending = True
                await send({"type": "http.response.body", "body": translate(whole), "more_body": True})
                watcher.sending = False
            if events.done:
                break
            data = await reply.read()
            if not data:
                raise ClientPayloadError
            whole = events.feed(data)
            now = clock()
            watcher.deadline = now + timeout_s
            if events.events > count:
                observe((now - last) / (events.events - count))
                last, count = now, events.events
        await reply.finish()
        await send({"type": "http.response.body", "body": b""})

    async def _break(self, send: Send, error: EverlearnError, passed: bytes = b"") -> None:
        """End a stream that has begun by one error event, without [DONE]."""
        self._exchange.error = error.code
        body = (self._translator.events(passed) if passed else b"") + self._translator.failure(error)
        await send({"type": "http.response.body", "body": body})

    async def _stopped(self, reason: Reason, scope: Scope, send: Send) -> None:
        self._exchange.error = reason
        # Where the server gave up before an answer that is not streamed came, nothing is charged.
        left = reason in ("client_gone", "slow_reader")
        self._uncounted |= left and self._exchange.replica is not None and self._exchange.usage is None
        if reason == "client_gone":
            self._exchange.status = CLIENT_GONE
            return
        if reason == "slow_reader":
            _abort(scope)
            return
        if reason == "silent" and self._exchange.replica:
            self._exchange.replica.failed()
        error = (
            Draining("The server is shutting down.")
            if reason == "shutting_down"
            else BackendTimeout("The model's engine did not answer in time.")
        )
        if not self._exchange.status:
            raise error
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self._break(send, error)
        except TimeoutError:
            _abort(scope)

    async def _count_what_was_done(self) -> None:
        """A cancelled answer costs what was read and generated: as its engine counts it, else as estimated here."""
        exchange = self._exchange
        assert exchange.replica is not None
        known = exchange.usage or {"completion_tokens": exchange.cost.answer(exchange.replica.row.context)}
        if known.get("prompt_tokens") is None:
            known["prompt_tokens"] = exchange.cost.prompt
        exchange.usage = await exchange.replica.used(exchange.number) or known


def _abort(scope: Scope) -> None:
    """Drop the client's connection and what is buffered for it: `serve.bounded_http` puts the function there."""
    scope["everlearn.abort"]()


def usage_in(answer: bytes) -> dict[str, Any] | None:
    """The usage of a complete answer, without parsing the answer."""
    at = answer.rfind(b'"usage"')
    start = answer.find(b"{", at)
    if at < 0 or start < 0:
        return None
    try:
        usage, _ = json.JSONDecoder().raw_decode(answer[start : start + MAX_USAGE_BYTES].decode())
    except ValueError:
        return None
    return usage if isinstance(usage, dict) else None
