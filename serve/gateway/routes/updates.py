"""`/v1/updates/…`: the channel that devices update from, as files. They are signed; whoever may connect may read them."""

import asyncio
import ipaddress
import json
import re
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from everlearn.errors import NotFound
from serve.gateway.http.exchange import exchange_of
from serve.gateway.http.failures import Overloaded
from serve.gateway.pages.openapi import error_responses
from serve.gateway.state import Gateway

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
SERVED = re.compile(
    rf"metadata/{NAME}\.json|blobs/[0-9a-f]{{64}}|targets/{NAME}/{NAME}/[0-9a-f]{{64}}\.{NAME}\.json"
)
RELEASE = re.compile(rf"targets/({NAME})/({NAME})/[0-9a-f]{{64}}\.(champion|canary)\.json")
NEWS = "metadata/timestamp.json"
"""The one file that changes; every other has its version or its sha256 in its name."""
MISSING = "There is no such file in the update channel."
AT_ONCE = 64
PER_CLIENT = 16
MAX_RELEASE_BYTES = 4 << 20
STALL_S = 30
"""How long a reader may leave the next 64 KiB untaken."""


class Bounded(Response):
    """Another response, broken off where its reader stops taking it: a device resumes what broke off."""

    def __init__(self, inner: Response) -> None:
        self.inner, self.status_code, self.background = inner, inner.status_code, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def taken(message: Message) -> None:
            try:
                async with asyncio.timeout(STALL_S):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        await self.inner(scope, receive, taken)


def add_updates(app: FastAPI, gateway: Gateway) -> None:
    """Add the route; it knows no file unless the settings name a channel's folder."""
    settings = gateway.settings.updates
    folder = settings.folder
    files = StaticFiles(directory=folder, check_dir=False)
    running: dict[str, str] = {}

    @app.get("/v1/updates/{path:path}", responses=error_responses(404, 429), response_class=Response)
    async def updates(request: Request, path: str) -> Response:
        """A file of the update channel; `Range` and `If-None-Match` are answered."""
        if folder is None or not SERVED.fullmatch(path):
            raise HTTPException(404)
        exchange = exchange_of(request)
        client = client_of(request)
        if len(running) >= AT_ONCE or list(running.values()).count(client) >= PER_CLIENT:
            raise Overloaded(
                "Too many devices are updating at this moment. Try again shortly.", retry_after_s=30
            )
        running[exchange.number] = client
        exchange.on_end.append(partial(running.pop, exchange.number))
        try:
            response = await files.get_response(path, request.scope)
        except HTTPException:
            raise NotFound(MISSING) from None
        fresh = path == NEWS
        response.headers["cache-control"] = "no-cache" if fresh else "public, max-age=31536000, immutable"
        if settings.count and request.method == "GET" and response.status_code == 200:
            await asyncio.to_thread(count, gateway, folder, path)
        return Bounded(response)


def client_of(request: Request) -> str:
    """Whose share a request takes: its address; of IPv6 the first 64 bits, as one client has all addresses after them."""
    address = ipaddress.ip_address(request.client.host if request.client else "::")
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def count(gateway: Gateway, folder: Path, path: str) -> None:
    """A version's description is downloaded: nothing of who does it, only which version of what."""
    if named := RELEASE.fullmatch(path):
        with (folder / path).open("rb") as file:
            version = json.loads(file.read(MAX_RELEASE_BYTES)).get("version")
        gateway.metrics.updates.labels(*named.groups(), version).inc()
