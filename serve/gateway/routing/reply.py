"""An engine's answer to one request: sent for, checked, and read until it has really begun.

Engines report errors inside streams they have already begun with status 200, so the first event is read here,
before the client is told anything.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from errno import EAGAIN
from typing import Any

import jiter
from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
)

from everlearn.errors import EverlearnError
from serve.answer_facts import AnswerFacts, facts_in
from serve.engines import LEFT_OPEN
from serve.gateway.formats.schema_check import SchemaViolation
from serve.gateway.http.failures import BackendFailed, BackendRefused, BrokeOff, NoBackend, Overloaded
from serve.gateway.routing.events import BrokenStream, EngineError, EventFilter
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.work import Work

FINISH_S = 0.5
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
AT_CAPACITY = "The model is at capacity. Try again shortly."
NEVER_STARTED = "The model's engine stopped before it answered. Try again shortly."


class AttemptFailed(Exception):
    """An attempt that ended before the answer's first byte; `error` is for the client if no other attempt succeeds.

    `broke`: the engine crashed or was gone, rather than full or about to leave.
    """

    def __init__(self, error: EverlearnError, *, broke: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.broke = broke


class Reply:
    """An engine's answer: `first` holds its first events, or all of it when it is no stream."""

    def __init__(self, replica: Replica, work: Work) -> None:
        self.replica = replica
        self.events = EventFilter(work.strip_usage)
        self.first = b""
        self.facts = AnswerFacts()
        self._work = work
        self._response: ClientResponse | None = None
        replica.start()

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Send the request and read the beginning. Raises AttemptFailed or the error for the client."""
        try:
            await self._send(headers)
            await self._check_status()
            self.first = await (self._first_events() if self._work.stream else self._whole())
        except ClientConnectorError as error:
            if error.errno == EAGAIN:  # a unix socket whose queue is full
                raise AttemptFailed(Overloaded(AT_CAPACITY, retry_after_s=1)) from None
            self.replica.failed(at_once=True)
            raise AttemptFailed(NoBackend(NEVER_STARTED), broke=True) from None
        except (ClientPayloadError, ClientConnectionError):
            self.replica.failed()
            raise AttemptFailed(BrokeOff(NEVER_STARTED), broke=True) from None
        except ClientError:
            self.replica.failed()
            raise BackendFailed("The model's engine broke the protocol.") from None
        except BrokenStream:
            self.replica.failed()
            raise BackendFailed("The model's engine sent a broken stream.") from None
        except EngineError as event:
            raise self.refusal(event.error) from None
        (self.replica.began if self._work.stream else self.replica.succeeded)()

    async def read(self) -> bytes:
        """The next bytes, empty at the end. Raises ClientError when the connection breaks."""
        assert self._response is not None
        return await self._response.content.readany()

    def left_open(self) -> bytes:
        """The parts of the request's schemas that the engine says it does not enforce."""
        assert self._response is not None
        return self._response.headers.get(LEFT_OPEN, "").encode("ascii", "replace")

    async def finish(self) -> None:
        """After the last event: let the engine end its response, so that the connection can be reused."""
        self.replica.succeeded()
        with suppress(TimeoutError, ClientError):
            async with asyncio.timeout(FINISH_S):
                while await self.read():
                    pass

    def close(self) -> None:
        """Close the connection at once, which the engine notices. No effect after a complete answer."""
        if self._response is not None:
            self._response.close()
        self.replica.finish()

    async def _send(self, headers: Mapping[str, str]) -> None:
        self._response = await self.replica.session.post(
            self.replica.address(self._work.path),
            data=self._work.to(self.replica.serves_as or self._work.model).body,
            headers={"content-type": "application/json", **headers},
            allow_redirects=False,
        )

    async def _check_status(self) -> None:
        assert self._response is not None
        status = self._response.status
        if status == 200:
            self.facts = facts_in(self._response.headers)
            return
        error = _error_object(await self._bounded(MAX_ERROR_BYTES))
        raise self.refusal(error, status)

    def refusal(self, error: dict[str, Any], status: int | None = None) -> Exception:
        """The exception for an engine's error: AttemptFailed (try another), the client's own fault, or the engine's."""
        status = status or _status(error)
        if status == 429:
            return AttemptFailed(Overloaded(AT_CAPACITY, retry_after_s=1))
        if status == 503:
            return AttemptFailed(NoBackend("The model's engine is not ready. Try again shortly."))
        if error.get("code") == SchemaViolation.code:
            return SchemaViolation(_text(error.get("message")) or "The answer breaks its strict schema.")
        if 400 <= status < 500:
            return BackendRefused(
                status,
                _text(error.get("message")) or "The engine refused this request.",
                _text(error.get("type")) or "invalid_request_error",
                _text(error.get("param")),
                _text(error.get("code")),
            )
        return BackendFailed("The model's engine failed on this request.")

    async def _first_events(self) -> bytes:
        came = False
        while data := await self.read():
            came = True
            if (events := self.events.feed(data)) and (self.events.events or self.events.done):
                return self.first + events
            self.first += events
        if came:
            raise BrokenStream("ended within its first event")
        raise ClientPayloadError

    async def _whole(self) -> bytes:
        answer = await self._bounded(MAX_ANSWER_BYTES)
        if not (answer.startswith(b"{") and answer.rstrip().endswith(b"}")):
            raise BrokenStream("not a JSON object")
        return answer

    async def _bounded(self, limit_bytes: int) -> bytes:
        parts = []
        left = limit_bytes
        while data := await self.read():
            parts.append(data)
            left -= len(data)
            if left < 0:
                raise BrokenStream("longer than any answer")
        return b"".join(parts)


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        value = jiter.from_json(body)
    except ValueError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _status(error: dict[str, Any]) -> int:
    """The HTTP status that an error event stands for: its numeric code, or its type."""
    code = error.get("code")
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    kind = str(error.get("type", "")).lower()
    if "invalid" in kind or "badrequest" in kind:
        return 400
    if "rate_limit" in kind or "overload" in kind:
        return 429
    return 503 if "unavailable" in kind else 500


def _text(value: Any) -> str | None:
    return value[:2000] if isinstance(value, str) else None
