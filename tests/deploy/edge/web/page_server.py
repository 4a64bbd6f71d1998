"""The page's own server in a thread, with faults: connections that break, bytes that are changed, a network that is gone."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from deploy.edge.web.serve import HEADERS, create_app


@dataclass
class Faults:
    """``break_at``: of a path, the byte from which its connections break. ``flip_at``: the byte that is another one.
    ``silent_at``: the byte after which nothing comes and nobody hangs up."""

    break_at: dict[str, int] = field(default_factory=dict)
    flip_at: dict[str, int] = field(default_factory=dict)
    silent_at: dict[str, int] = field(default_factory=dict)
    without_ranges: bool = False
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes of each path that left the server."""


class FaultyServer:
    def __init__(self, directory: Path, *, isolated: bool = True) -> None:
        self.faults = Faults()
        self._app = create_app(directory, HEADERS if isolated else {})
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://localhost:{self._port}/"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Between two times, the network is gone."""
        server = uvicorn.Server(uvicorn.Config(self, port=self._port, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield
        finally:
            server.should_exit = server.force_exit = True
            thread.join()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"].lstrip("/")
        faults = self.faults
        if faults.without_ranges:
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        at = int(dict(scope["headers"]).get(b"range", b"bytes=0-").split(b"=")[1].split(b"-")[0])

        if faults.silent_at.get(path) == at:
            await asyncio.Event().wait()

        async def spoilt(message: dict[str, Any]) -> None:
            nonlocal at
            if message["type"] == "http.response.body" and message.get("body"):
                body = bytearray(message["body"])
                if at <= faults.flip_at.get(path, -1) < at + len(body):
                    body[faults.flip_at[path] - at] ^= 1
                limit = faults.break_at.get(path, at + len(body)) - at
                faults.sent[path] = faults.sent.get(path, 0) + min(len(body), max(limit, 0))
                at += len(body)
                if limit < len(body):
                    await send({**message, "body": bytes(body[: max(limit, 0)]), "more_body": True})
                    raise ConnectionResetError("as the test wants it")
                message = {**message, "body": bytes(body)}
            await send(message)

        await self._app(scope, receive, spoilt)
