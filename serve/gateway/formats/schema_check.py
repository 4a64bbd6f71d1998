"""Checks answers against strict JSON schemas: a complete answer that violates one is an error, whichever engine gave it.

Our engines enforce schemas by grammars; other servers may not. The check runs in processes of its own
(`schema_child`), within a time limit, so that it cannot block the gateway.
"""

import asyncio
import json
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import jiter

from everlearn.errors import EverlearnError
from everlearn.processes.program import environment, python
from serve.protocol.chat import ChatRequest, JsonSchemaFormat
from serve.protocol.sampling import SamplingFields

Json = dict[str, Any]

FOREIGN = (ValueError, LookupError, TypeError, AttributeError)
"""What reading a malformed answer raises."""

COMMAND = python("serve.gateway.formats.schema_child")
LIMIT_S = 5.0
"""For all checks of one answer together."""

AT_ONCE = 4

CUT = frozenset(("length", "content_filter"))
"""Finish reasons of answers that are incomplete, so that no schema can hold."""
DONE = b"data: [DONE]"


class SchemaViolation(EverlearnError):
    """The answer violates the client's strict schema."""

    status = 502
    code = "schema_violation"
    passed = b""
    """Of a stream, the events of the last chunk before the one that ended the answer."""


class SchemaCheckPool:
    """The checking processes, started when needed."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._idle: list[Process] = []

    async def flaw(self, schema: Json, text: str, limit_s: float) -> str | bool | None:
        """What is wrong with `text`; None if nothing, False if that cannot be determined within the limits."""
        process = None
        try:
            async with asyncio.timeout(limit_s), self._places:
                process = self._idle.pop() if self._idle else None
                if process is None or process.returncode is not None:
                    process = await asyncio.create_subprocess_exec(
                        *COMMAND, env=environment(), stdin=PIPE, stdout=PIPE
                    )
                assert process.stdin and process.stdout
                process.stdin.write(json.dumps([schema, text]).encode() + b"\n")
                await process.stdin.drain()
                answer = json.loads(await process.stdout.readline())
        except (TimeoutError, ValueError, OSError):
            _kill(process)
            return False
        except BaseException:
            _kill(process)
            raise
        self._idle.append(process)
        return answer

    async def stop(self) -> None:
        """End the processes."""
        while self._idle:
            process = self._idle.pop()
            _kill(process)
            await process.wait()


def _kill(process: Process | None) -> None:
    if process is not None:
        with suppress(ProcessLookupError):
            process.kill()


class StrictAnswerCheck:
    """Checks one answer against the strict schemas of its request, whole or as it streams.

    `schemas` has that of the response format under None, and those of functions under their names.
    """

    def __init__(self, schemas: Mapping[str | None, Json], checks: SchemaCheckPool) -> None:
        self._schemas = schemas
        self._checks = checks
        self._content: dict[int, str] = {}
        self._calls: dict[int, dict[int, Json]] = {}
        self._open: set[int] = set()
        self._refused: set[int] = set()
        self._left_s = LIMIT_S

    async def check_whole(self, answer: bytes, *, trusted: bool) -> None:
        """Raises SchemaViolation if a complete answer violates a schema. One that cannot be checked passes if its engine is trusted."""
        try:
            for choice in jiter.from_json(answer)["choices"]:
                index = self._add(choice, choice["message"])
                await self._check(index, choice.get("finish_reason"), trusted)
        except FOREIGN:
            _refuse_unreadable(trusted)

    async def check_events(self, events: bytes, *, trusted: bool) -> None:
        """Take whole events of a stream. Raises SchemaViolation if a choice has ended and violates its schema."""
        passed = 0
        for event in events.split(b"\n\n"):
            if event.startswith(b"data: "):
                try:
                    await self._check_event(event, trusted)
                except SchemaViolation as violation:
                    violation.passed = events[:passed]
                    raise
            passed += len(event) + 2

    async def _check_event(self, event: bytes, trusted: bool) -> None:
        """A choice ends with its finish reason, or with the stream if its server gives none."""
        try:
            if event == DONE:
                for index in sorted(self._open):
                    await self._check(index, None, trusted)
                return
            for choice in _choices(event):
                index = self._add(choice, choice.get("delta") or {})
                if reason := choice.get("finish_reason"):
                    await self._check(index, reason, trusted)
        except FOREIGN:
            _refuse_unreadable(trusted)

    def _add(self, choice: Json, said: Json) -> int:
        index = choice.get("index", 0)
        self._open.add(index)
        if said.get("refusal"):
            self._refused.add(index)
        self._content[index] = self._content.get(index, "") + (said.get("content") or "")
        calls = self._calls.setdefault(index, {})
        for position, part in enumerate(said.get("tool_calls") or ()):
            call = calls.setdefault(part.get("index", position), {"name": None, "arguments": ""})
            call["name"] = part["function"].get("name") or call["name"]
            call["arguments"] += part["function"].get("arguments") or ""
        return index

    async def _check(self, index: int, reason: str | None, trusted: bool) -> None:
        """Check a choice that has ended, unless it was cut or refused."""
        self._open.discard(index)
        if reason in CUT or index in self._refused:
            return
        for name, text in self._texts(index):
            began_s = time.monotonic()
            flaw = await self._checks.flaw(self._schemas[name], text, self._left_s)
            self._left_s -= time.monotonic() - began_s
            if flaw or (flaw is False and not trusted):
                what = "The model's answer" if name is None else f"The model's call of {name}"
                why = f": {flaw}" if flaw else ", or could not be held against it in time"
                raise SchemaViolation(f"{what} does not keep to its strict schema{why}.")

    def _texts(self, index: int) -> Iterator[tuple[str | None, str]]:
        calls = self._calls[index].values()
        for call in calls:
            if call["name"] in self._schemas:
                yield call["name"], call["arguments"]
        if None in self._schemas and not calls:
            yield None, self._content[index]


def _refuse_unreadable(trusted: bool) -> None:
    """A trusted engine's malformed answer is reported by its translator."""
    if not trusted:
        raise SchemaViolation(
            "The model's answer cannot be read, so not held against its strict schema."
        ) from None


def _choices(event: bytes) -> list[Json]:
    return jiter.from_json(event[len(b"data: ") :]).get("choices") or []


def strict_schemas(request: SamplingFields) -> dict[str | None, Json]:
    """The strict schemas of a chat request; that of the text only where no stop sequence may cut it."""
    schemas: dict[str | None, Json] = {}
    if isinstance(request, ChatRequest):
        format = request.response_format
        if isinstance(format, JsonSchemaFormat) and format.json_schema.strict and not request.stop:
            schemas[None] = format.json_schema.schema_
        for tool in request.tools or ():
            if tool.function.strict and tool.function.parameters:
                schemas[tool.function.name] = tool.function.parameters
    return schemas
