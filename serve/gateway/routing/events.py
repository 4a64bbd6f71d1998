"""The server-sent events of an engine: split, checked, and passed on unchanged.

In the common case no event is parsed: a chunk that begins and ends at event boundaries, contains neither "usage" nor
"error", and is valid UTF-8, is passed on whole. Those words can only match keys, since quotes inside JSON strings are
escaped.
"""

import json
from typing import Any

END = b"\n\n"
DATA = b"data: "
DONE = b"data: [DONE]"
MAX_EVENT_BYTES = 1 << 20


class BrokenStream(Exception):
    """The engine's bytes are not a stream of events."""


class EngineError(Exception):
    """The engine reported an error as an event."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__("error event")
        self.error = error


class EventFilter:
    """Takes an engine's bytes as they arrive and returns whole events, ready to send.

    After `feed` raised, `passed` holds the good events before the bad one.
    """

    def __init__(self, strip_usage: bool) -> None:
        self.done = False
        self.usage: dict[str, Any] | None = None
        self.events = 0
        self.passed = b""
        self._strip_usage = strip_usage
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The whole events that `data` completes. Raises BrokenStream, EngineError."""
        whole = self._whole(data)
        if not whole:
            return b""
        if (
            whole.startswith(b"data: {")
            and whole.endswith(b"}\n\n")
            and b'"usage"' not in whole
            and b'"error"' not in whole
            and _is_text(whole)
        ):
            self.events += whole.count(END)
            return whole
        return self._each(whole)

    def _whole(self, data: bytes) -> bytes:
        """The bytes up to the last event boundary; the rest is kept for later."""
        if not self._rest and data.endswith(END):
            return data
        self._rest += data
        searched = max(0, len(self._rest) - len(data) - 1)
        cut = self._rest.rfind(END, searched)
        if cut < 0:
            if len(self._rest) > MAX_EVENT_BYTES:
                raise BrokenStream("an event without end")
            return b""
        whole = bytes(self._rest[: cut + 2])
        del self._rest[: cut + 2]
        return whole

    def _each(self, whole: bytes) -> bytes:
        passed: list[bytes] = []
        try:
            for event in whole.split(END)[:-1]:
                if self._keep(event.strip(b"\n")):
                    passed += event, END
                if self.done:
                    break
        except Exception:
            self.passed = b"".join(passed)
            raise
        return b"".join(passed)

    def _keep(self, event: bytes) -> bool:
        if event == DONE:
            self.done = True
            return True
        if not event:
            return False
        if not (event.startswith((b":", DATA)) and _is_text(event)):
            raise BrokenStream("not an event")
        if event.startswith(b":"):
            return True
        self.events += 1
        payload = _object(event[len(DATA) :])
        if isinstance(payload.get("error"), dict):
            raise EngineError(payload["error"])
        usage = payload.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
            if not payload.get("choices"):
                self.events -= 1
                return not self._strip_usage
        return True


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenStream("not JSON") from None
    if not isinstance(value, dict):
        raise BrokenStream("not an object")
    return value


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
