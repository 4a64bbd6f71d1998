"""Who may ask the model of a device.

With a key: who sends it. Without one, programs of the device itself: pages that a browser shows are not among them, and a
page of another site can reach 127.0.0.1 by a name that it makes stand for it (DNS rebinding).
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
            refused = self._refuse(dict(scope["headers"]))
        if refused:
            await Responder(receive, send).error(refused)
        else:
            await self.application(scope, receive, send)

    def _refuse(self, headers: dict[bytes, bytes]) -> EverlearnError | None:
        if self.key is not None:
            sent = headers.get(b"authorization", b"")
            if hmac.compare_digest(sent, b"Bearer " + self.key.encode()):
                return None
            return AuthError("send the device's key as Authorization: Bearer KEY")
        for name in (b"host", b"origin"):
            said = headers.get(name, b"").decode("latin-1")
            if said and not is_local(said if name == b"origin" else f"//{said}"):
                return Forbidden(
                    f"{name.decode()} {said[:100]!r} is not this device's: without a key it answers its own "
                    "programs, as 127.0.0.1 or localhost"
                )
        return None


def is_local(url: str) -> bool:
    """Whether a URL's host is this machine, by a name that nobody else can make stand for something."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
