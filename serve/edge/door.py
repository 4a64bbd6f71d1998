"""Who may ask the model of a device.

With a key: who sends it. Without one, programs of the device itself. Pages that a browser shows are not among them: it says
of each request which page sent it, and a page cannot change that. A page of another site can reach 127.0.0.1 by a name that
it makes stand for it (DNS rebinding), so the name must be the device's, too.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from everlearn.errors import AuthError, EverlearnError, Forbidden
from serve.engines.onnx.responder import Receive, Responder, Send

OPEN = "/health"


class Door:
    """``application`` for those who may. ``key``: None lets in who calls the device by an address of its own."""

    def __init__(self, application: Any, key: str | None) -> None:
        self.application = application
        self.key = key

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        refused = None
        if scope["type"] == "http" and scope["path"] != OPEN:
            refused = self._refuse(scope["headers"])
        if refused:
            await Responder(receive, send).error(refused)
        else:
            await self.application(scope, receive, send)

    def _refuse(self, headers: list[tuple[bytes, bytes]]) -> EverlearnError | None:
        if self.key is not None:
            sent = dict(headers).get(b"authorization", b"")
            if hmac.compare_digest(sent, b"Bearer " + self.key.encode()):
                return None
            return AuthError("send the device's key as Authorization: Bearer KEY")
        if foreign := find_foreign(headers):
            name, said = foreign
            return Forbidden(
                f"{name} {said[:100]!r} is not this device's: without a key it answers its own programs, "
                "as 127.0.0.1 or localhost"
            )
        return None


def find_foreign(headers: list[tuple[bytes, bytes]]) -> tuple[str, str] | None:
    """The header, and what it says, by which a request is for another host, or from a page that is not the server's own."""
    said = [(name.decode("latin-1"), value.decode("latin-1").lower()) for name, value in headers]
    hosts = [value for name, value in said if name == "host"]
    if len(hosts) > 1 or not all(is_local(host) for host in hosts):
        return "host", ", ".join(hosts)
    for name, value in said:
        if name == "origin" and [value.partition("://")[2]] != hosts:
            return name, value
        if name == "sec-fetch-site" and value not in ("none", "same-origin"):
            return name, value
    return None


def is_local(host: str) -> bool:
    """Whether a host, and perhaps a port, is this machine, by a name that nobody else can make stand for something."""
    try:
        host = urlsplit(f"//{host}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
