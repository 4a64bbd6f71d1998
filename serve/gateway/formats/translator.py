"""Translators from an engine's chat answer to what a client reads, one for each API."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from everlearn.errors import EverlearnError
from serve.answer_facts import AnswerFacts
from serve.gateway.http.failures import describe


class Translator(Protocol):
    """Translates one answer, whole or streamed. `whole` and `events` raise MalformedAnswer."""

    def start(self, facts: AnswerFacts) -> None:
        """Take what the engine tells before the answer."""
        ...

    def whole(self, answer: bytes) -> bytes:
        """Translate a complete answer."""
        ...

    def events(self, events: bytes) -> bytes:
        """Translate whole events of a stream."""
        ...

    def failure(self, error: EverlearnError) -> bytes:
        """The last event of a stream that breaks."""
        ...


class PassThrough:
    """For clients of the API that engines speak: nothing is translated."""

    def start(self, facts: AnswerFacts) -> None: ...

    def whole(self, answer: bytes) -> bytes:
        return answer

    def events(self, events: bytes) -> bytes:
        return events

    def failure(self, error: EverlearnError) -> bytes:
        return b"data: " + json.dumps(describe(error)[1]).encode() + b"\n\n"


class MalformedAnswer(Exception):
    """The engine's answer is JSON, but no chat completion."""


@contextmanager
def reading_answer() -> Iterator[None]:
    """Raises MalformedAnswer for what the block trips over in an engine's answer."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MalformedAnswer(type(error).__name__) from error
