"""The socket of a runner: its servers, an old one and a new one, accept from the same."""

from __future__ import annotations

import ipaddress
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everlearn.errors import Conflict, InvalidInput

BACKLOG = 512


@contextmanager
def listen_on_port(host: str, port: int, has_key: bool) -> Iterator[socket.socket]:
    """A TCP socket. Raises InvalidInput for a host that the network sees and no key, Conflict where it is taken."""
    if not 0 <= port <= 65535:
        raise InvalidInput(f"--port {port}: ports are 0 to 65535", param="port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidInput(f"--host {host}: {error.strerror}", param="host") from None
    if not has_key and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InvalidInput(
            f"--host {host} offers the model to the network: give --key-file, or leave it at 127.0.0.1",
            param="host",
        )
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise Conflict(f"--host {host} --port {port}: {error.strerror}", param="port") from None
        listener.listen(BACKLOG)
        yield listener


@contextmanager
def listen_at_path(path: Path) -> Iterator[socket.socket]:
    """A unix socket that its user alone may write to; one that nobody listens at any more is replaced.

    Raises Conflict where somebody does, or where ``path`` is something else.
    """
    try:
        refuse_taken(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInput(f"--uds {path}: {error.strerror or error}", param="uds") from None


def refuse_taken(path: Path) -> None:
    """Removes a socket that a killed runner has left."""
    if not path.exists() and not path.is_symlink():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise Conflict(f"--uds {path} is there and is no socket", param="uds")
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) == 0:
            raise Conflict(f"--uds {path}: another process listens there", param="uds")
    path.unlink()


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    host = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
    return f"http://{host}:{address[1]}/v1"
