"""The HTTP server: uvicorn with limits on what comes before a request, and with draining on SIGTERM."""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from everlearn.settings import ServeSettings
from everlearn.watched_process import answering_health
from serve.protocol import error_body

MAX_HEADER_BYTES = 64 * 1024
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
HEADER_TIMEOUT_S = 30
KEEP_ALIVE_S = 75
LAST_WORDS_S = 2
HEAD_TOO_LONG = "The request's URL and headers are too long."

log = structlog.get_logger()


class HeadTooLong(Exception):
    """Stops the parser; never leaves this module."""


class BoundedHttp(HttpToolsProtocol):
    """Refuses headers that are too long or too slow, and bodies nobody reads any more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = self._raw_head_bytes = self._discarded_bytes = 0
        self._in_head = True
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._raw_head_bytes += len(data)  # the parser tells of a header only when it is complete
            if self._raw_head_bytes > MAX_HEADER_BYTES:
                self._refuse(431, HEAD_TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._raw_head_bytes = self._discarded_bytes = 0
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._head_too_slow)

    def on_url(self, url: bytes) -> None:
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        super().on_headers_complete()
        self.scope["everlearn.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(431, HEAD_TOO_LONG)
        else:
            self._refuse(400, msg)

    def _count_head(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            raise HeadTooLong

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, "The request's headers did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(error_body(message, "invalid_request_error", None, "bad_request")).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: `/ready` turns 503, streams finish, then the process ends with status 0."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: ServeSettings) -> None:
        super().__init__(config)
        self._gateway = app.state.gateway
        self._drain_timeout_s = settings.drain_timeout_s
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        loop = asyncio.get_event_loop()
        if self._drain is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        else:
            loop.call_soon_threadsafe(self.drain, self._drain_timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Begin to stop. A second call changes nothing."""
        if self._drain is None:
            log.info("draining", in_flight=self._gateway.in_flight)
            self._drain = asyncio.get_running_loop().create_task(self._finish(timeout_s))

    async def _finish(self, timeout_s: float) -> None:
        await self._gateway.drain(timeout_s)
        self.should_exit = True

    def stop_with_parent(self) -> None:
        """Watch standard input: its end means that the parent is gone."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            if not os.read(0, 1024):
                loop.remove_reader(0)
                self.drain(0)

        os.set_blocking(0, False)
        loop.add_reader(0, read)


def build_server(app: FastAPI, settings: ServeSettings) -> DrainingServer:
    """A server for the app, on the settings' host and port."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedHttp,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    return DrainingServer(config, app, settings)


async def serve(
    server: DrainingServer, parent_pipe: bool = False, fd: int | None = None, uds: Path | None = None
) -> None:
    """Serve until told to stop: on a socket of its own, or on the inherited `fd`."""
    if parent_pipe:
        server.stop_with_parent()
    log.info("listening", host=server.config.host, port=server.config.port)
    async with answering_health(uds, lambda: (True, {})):
        await server.serve(None if fd is None else [socket.socket(fileno=fd)])
