"""vLLM's chat answers with calls told from text, whole and streamed, as the ONNX engine tells them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from starlette.types import Message, Send

from serve.engines.calls import Reading, Said, whole_calls

Json = dict[str, Any]


def end(said: Said) -> Json:
    """Why a choice ended, as vLLM itself tells it."""
    return {"finish_reason": said.finish, **({"stop_reason": said.stop} if said.stop else {})}


class CallReader:
    """A `send` that reads each choice of a successful answer with a `Reading` of its own."""

    def __init__(self, send: Send, reading: Callable[[], Reading]) -> None:
        self._send = send
        self._new = reading
        self._readings: dict[int, Reading] = {}
        self._start: Message = {}
        self._streams = False
        self._rest = b""

    async def __call__(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self._start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            if self._streams:
                await self._send(message)
            return
        self._rest += message.get("body", b"")
        more = message.get("more_body", False)
        if self._streams:
            *events, self._rest = self._rest.split(b"\n\n")
            written = b"".join(map(self._event, events)) + (b"" if more else self._rest)
            if written or not more:
                await self._send({"type": "http.response.body", "body": written, "more_body": more})
        elif not more:
            body = self._rest if self._start["status"] != 200 else self._whole(self._rest)
            headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
            await self._send({**self._start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await self._send({"type": "http.response.body", "body": body})

    def _whole(self, body: bytes) -> bytes:
        answer = json.loads(body)
        for choice in answer["choices"]:
            said = self._read(choice["index"], choice["message"].get("content"), choice["finish_reason"])
            choice["message"]["content"] = said.text
            if said.calls:
                choice["message"] |= {"content": said.text or None, "tool_calls": whole_calls(said.calls)}
            choice |= end(said)
        return json.dumps(answer).encode()

    def _event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data: ")
        if data == event or data == b"[DONE]":
            return event + b"\n\n"
        chunk = json.loads(data)
        if not chunk.get("choices"):
            return event + b"\n\n"
        parts = [part for choice in chunk["choices"] for part in self._choices(choice)]
        return b"".join(
            b"data: " + json.dumps(chunk | {"choices": [part]}).encode() + b"\n\n" for part in parts
        )

    def _choices(self, choice: Json) -> Iterator[Json]:
        """Of one piece of a choice: its text, its calls, its end."""
        delta, finish = choice["delta"], choice.get("finish_reason")
        said = self._read(choice["index"], delta.get("content"), finish)
        if said.text or choice.get("logprobs") or "role" in delta:
            yield choice | {"delta": delta | {"content": said.text}, "finish_reason": None}
        bare = choice | {"logprobs": None, "finish_reason": None}
        for part in said.calls:
            yield bare | {"delta": {"tool_calls": [part.delta()]}}
        if finish:
            yield bare | {"delta": {}} | end(said)

    def _read(self, index: int, text: str | None, finish: str | None) -> Said:
        reading = self._readings.setdefault(index, self._new())
        said = Said() if reading.stopped else reading.feed(text or "")
        if finish:
            said.add(reading.finish("length" if finish == "length" else "stop"))
        return said
