"""An engine that does what a test tells it: a raw HTTP server on a unix socket, good or broken by script."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
WORDS = ("Par", "is", "!")


@dataclass
class Received:
    """One request as it came, and how it ended."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class Connection:
    """What a script writes with."""

    def __init__(self, writer: asyncio.StreamWriter, request: Received) -> None:
        self.writer = writer
        self.request = request

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(
        self, kind: str = "text/event-stream", status: str = "200 OK", length: int | None = None,
        **more: str,
    ) -> None:  # fmt: skip
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in more.items())
        await self.raw(f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{headers}{size}\r\n\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, value: Any) -> None:
        await self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def delta(self, text: str, finish: str | None = None, **delta: Any) -> None:
        await self.event(chat_chunk({"content": text} | delta, finish))

    async def finish(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    async def json(self, value: Any, status: str = "200 OK", **more: str) -> None:
        data = json.dumps(value).encode()
        await self.head("application/json", status, len(data), **more)
        await self.raw(data)

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Connection], Awaitable[None]]


def chat_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


async def well(connection: Connection) -> None:
    """Answer like a good engine."""
    body, path = connection.request.body, connection.request.path
    if path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        await connection.json({"object": "list", "model": "m", "data": data, "usage": USAGE})
    elif not body.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "text": "".join(WORDS), "finish_reason": "stop"}
        kind = "chat.completion" if "chat" in path else "text_completion"
        answer = {"id": "c1", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
        await connection.json(answer)
    else:
        await connection.head()
        await connection.delta("", role="assistant")
        for word in WORDS:
            await connection.delta(word)
        await connection.delta("", finish="stop")
        if body.get("stream_options", {}).get("include_usage"):
            await connection.event(chat_chunk({}) | {"choices": [], "usage": USAGE})
        await connection.finish()


class ScriptedEngine:
    """Runs in a thread of its own; `script` may be changed between requests."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.script: Script = well
        self.used: dict[str, Any] | None = None
        """What it says that a request used which broke off."""
        self.received: list[Received] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    def listen(self) -> None:
        self._server = self._run(asyncio.start_unix_server(self._serve, str(self.socket), backlog=1024))

    def refuse(self) -> None:
        """Stop listening: connections are refused, as after a SIGKILL."""
        self._server.close()
        self.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def aborted_within(self, seconds: float) -> bool:
        """Whether the gateway hung up on the last request before its answer was complete."""
        try:
            self._run(asyncio.wait_for(self.received[-1].aborted.wait(), seconds))
        except TimeoutError:
            return False
        return True

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read_request(reader):
                if request.path.startswith("/used/"):
                    status = "200 OK" if self.used else "404 Not Found"
                    await Connection(writer, request).json(self.used or {}, status)
                    continue
                self.received.append(request)
                answer = asyncio.create_task(self.script(Connection(writer, request)))
                hung_up = asyncio.create_task(_until_closed(reader))
                await asyncio.wait([answer, hung_up], return_when=asyncio.FIRST_COMPLETED)
                if hung_up.done():
                    request.aborted.set()
                    answer.cancel()
                    return
                hung_up.cancel()
                await asyncio.wait([hung_up])
                if answer.exception() or writer.is_closing():
                    request.aborted.set()
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split()[1], headers, json.loads(body or b"{}"))


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():
        if reader._buffer:  # type: ignore[attr-defined]  # the next request is already here
            await asyncio.sleep(3600)
        await reader._wait_for_data("until_closed")  # type: ignore[attr-defined]
