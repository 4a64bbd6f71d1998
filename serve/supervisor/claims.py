"""A supervisor's claims before its work begins: its home, its port, and a folder for its sockets."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from everlearn.errors import Conflict, InvalidInput
from everlearn.settings import Settings

MAX_SOCKET_BYTES = 100
SOCKET_NAME_BYTES = len("/rep-000000000000.sock")


@contextmanager
def home(settings: Settings) -> Iterator[None]:
    """Hold the lock of a home: at most one supervisor per home. The kernel releases it when the process ends. Raises Conflict."""
    run = settings.directory("run")
    holder = run / "supervisor.pid"
    lock = FileLock(run / "supervisor.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise Conflict(
            f"{settings.home} is already being served by process {pid}; stop it first, "
            "or set EVERLEARN_HOME to serve another home"
        ) from None
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def port(settings: Settings) -> Iterator[tuple[list[socket.socket], Settings]]:
    """A socket for each gateway, not listening yet, and the settings with the actual port in place of port 0.

    None where no gateway is to be started. Several gateways on one port share the connections evenly (SO_REUSEPORT). Raises InvalidInput, Conflict.
    """
    serve = settings.serve
    if not serve.gateways:
        yield [], settings
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            serve.host or None, serve.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(
            f"host {serve.host!r} is not an address of this machine: {error.strerror}", param="host"
        ) from None

    def bound(address: Any, *options: int) -> socket.socket:
        held = stack.enter_context(socket.socket(family, kind))
        for option in (socket.SO_REUSEADDR, *options):
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        held.bind(address)
        return held

    with ExitStack() as stack:
        try:
            listeners = [bound(address)]
            address = listeners[0].getsockname()
            if serve.gateways > 1:
                listeners.pop().close()  # bound without SO_REUSEPORT, it has shown that no other process has the port
                listeners = [bound(address, socket.SO_REUSEPORT) for _ in range(serve.gateways)]
        except OSError as error:
            raise Conflict(
                f"port {serve.port} of {serve.host} cannot be bound: {error.strerror}; choose another with --port",
                param="port",
            ) from None
        yield listeners, settings.model_copy(update={"serve": serve.model_copy(update={"port": address[1]})})


@contextmanager
def sockets(settings: Settings) -> Iterator[Path]:
    """A private folder for the engines' unix sockets, whose paths the system limits to about 100 bytes."""
    run = settings.directory("run")
    if len(os.fsencode(run)) + SOCKET_NAME_BYTES < MAX_SOCKET_BYTES:
        yield run
        return
    folder = Path(tempfile.mkdtemp(prefix="everlearn-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
