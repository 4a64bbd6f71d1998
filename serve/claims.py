"""What a supervisor claims before it spends hours: its home, its port, and a folder for its sockets."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from everlearn.errors import Conflict, InvalidInput
from everlearn.settings import Settings

MAX_SOCKET_BYTES = 100
SOCKET_NAME_BYTES = len("/rep-000000000000.sock")


@contextmanager
def home(settings: Settings) -> Iterator[None]:
    """At most one supervisor per home. The lock is the kernel's, so it ends with its holder, however that ends."""
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
def port(settings: Settings) -> Iterator[tuple[socket.socket, Settings]]:
    """The gateways' address, held but not yet listening, and the settings with the port that port 0 became."""
    host, number = settings.serve.host, settings.serve.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(
            f"host {host!r} is not an address of this machine: {error.strerror}", param="host"
        ) from None
    with socket.socket(family, kind) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(address)
        except OSError as error:
            raise Conflict(
                f"port {number} of {host} cannot be had: {error.strerror}; choose another with --port",
                param="port",
            ) from None
        serve = settings.serve.model_copy(update={"port": held.getsockname()[1]})
        yield held, settings.model_copy(update={"serve": serve})


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
