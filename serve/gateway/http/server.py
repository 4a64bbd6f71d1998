"""The HTTP server: uvicorn with bounded connections, and with draining on SIGTERM."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from everlearn.processes.watched_process import health_endpoint
from everlearn.settings import ServeSettings
from serve.bounded_http import BoundedHttp

KEEP_ALIVE_S = 75
LAST_WORDS_S = 2

log = structlog.get_logger()


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
    """Serve until a shutdown signal: on a socket of its own, or on the inherited `fd`."""
    if parent_pipe:
        server.stop_with_parent()
    log.info("listening", host=server.config.host, port=server.config.port)
    async with health_endpoint(uds, lambda: (True, {})):
        await server.serve(None if fd is None else [socket.socket(fileno=fd)])
