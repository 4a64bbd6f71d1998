"""`/console`: what an administrator sees of this installation."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from everlearn.errors import Forbidden
from everlearn.settings import Settings
from serve.gateway.desk import Desk
from serve.gateway.exchange import exchange_of
from serve.gateway.overview import Overview, traffic, with_load

if TYPE_CHECKING:
    from serve.gateway.app import Gateway

NOT_ADMIN = "This API key is not an administrator's. `everlearn keys create NAME --admin` makes one that is."


class Console(Desk):
    """Where administrators look."""

    def __init__(self, gateway: "Gateway") -> None:
        super().__init__(gateway)
        self.overview = Overview(gateway.db)
        self.since = time.time()

    async def admit(self, request: Request) -> None:
        """An administrator, or anyone on this machine while there is no key. Raises AuthError, Forbidden."""
        await self.client(request)
        key = exchange_of(request).key
        if key and not key.admin:
            raise Forbidden(NOT_ADMIN)

    async def state(self) -> dict[str, Any]:
        """All that the page shows."""
        state = await asyncio.to_thread(self.overview.read)
        engines = state["engines"]
        return state | {
            "at": time.time(),
            "since": self.since,
            "engines": engines | {"rows": with_load(engines["rows"], self.gateway.router)},
            "traffic": traffic(self.gateway.metrics),
            "draining": self.gateway.draining,
        }


def add_console(app: FastAPI, gateway: "Gateway", settings: Settings) -> None:
    """The routes behind the page; they are no part of the API."""
    console = Console(gateway)

    @app.get("/console/state", include_in_schema=False)
    async def state(request: Request) -> dict[str, Any]:
        await console.admit(request)
        return await console.state()
