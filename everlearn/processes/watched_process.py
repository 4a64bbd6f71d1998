"""A supervised process's own part: a shutdown signal, and a health endpoint."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


def shutdown_event(*, follow_input: bool) -> asyncio.Event:
    """Set at SIGTERM or Ctrl-C, and with ``follow_input`` at the end of standard input: its parent is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def on_input() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    if follow_input:
        os.set_blocking(0, False)
        loop.add_reader(0, on_input)
    return stop


@asynccontextmanager
async def health_endpoint(
    uds: Path | None, check: Callable[[], tuple[bool, dict[str, Any]]]
) -> AsyncGenerator[None]:
    """Serves ``GET /health`` on the unix socket ``uds``, if any: 200, or 503 while ``check`` returns False first."""
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        healthy, details = check()
        body = {"status": "ok" if healthy else "stuck", **details}
        return web.json_response(body, status=200 if healthy else 503)

    app = web.Application()
    app.router.add_get("/health", answer)
    runner = web.AppRunner(app, access_log=None)
    try:
        if uds:
            await runner.setup()
            await web.UnixSite(runner, str(uds)).start()
        yield
    finally:
        await runner.cleanup()
