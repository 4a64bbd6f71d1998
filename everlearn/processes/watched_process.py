"""What a process needs that a supervisor watches: to hear that it shall stop, and to say that it is well."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


def told_to_stop(*, follow_input: bool) -> asyncio.Event:
    """Set at SIGTERM or Ctrl-C, and with ``follow_input`` at the end of standard input: its parent is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def heard() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    if follow_input:
        os.set_blocking(0, False)
        loop.add_reader(0, heard)
    return stop


@asynccontextmanager
async def answering_health(
    uds: Path | None, examine: Callable[[], tuple[bool, dict[str, Any]]]
) -> AsyncGenerator[None]:
    """``GET /health`` on a unix socket, where there is one to be: 200, or 503 while ``examine`` says False."""
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        well, told = examine()
        return web.json_response({"status": "ok" if well else "stuck", **told}, status=200 if well else 503)

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
