"""`/console/…`: the state of this installation for administrators, and the few actions that the page offers.

Each action is a function of the kernel, which writes its audit row in the same transaction.
"""

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field

from continual.queue.files import Client
from continual.queue.jobs import Jobs
from everlearn.errors import Conflict, Forbidden
from everlearn.registry.keys import revoke_key
from serve.gateway.http.exchange import exchange_of
from serve.gateway.pages.overview import Overview, traffic, with_load
from serve.gateway.routes.service import ResourceService
from serve.gateway.state import Gateway
from serve.protocol.body import Body
from serve.protocol.jobs import Stored
from serve.protocol.parsing import parse

NOT_ADMIN = "This API key is not an administrator's. `everlearn keys create NAME --admin` makes one that is."
MAX_ACT_BYTES = 4096


class Act(Body):
    """What to do with what: `promote` a `name@3`, `revoke` a key's id, `cancel`, `pause` or `resume` a job's id."""

    act: Literal["promote", "revoke", "cancel", "pause", "resume"]
    subject: Annotated[str, Field(min_length=1, max_length=128), Stored]


class ConsoleService(ResourceService):
    """Serves administrators."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.settings = gateway.settings
        self.overview = Overview(gateway.db)
        self.jobs = Jobs(gateway.settings, gateway.db)

    async def administrator(self, request: Request, *, acts: bool = False) -> Client:
        """Admit an administrator's key, or anyone on this machine while there is no key. Raises as `reader` or `writer`."""
        client = await (self.writer if acts else self.reader)(request)
        key = exchange_of(request).key
        if key and not key.admin:
            raise Forbidden(NOT_ADMIN)
        return client

    async def state(self, client: Client) -> dict[str, Any]:
        """Everything that the page shows."""
        state = await asyncio.to_thread(self.overview.read)
        engines = state["engines"]
        return state | {
            "at": time.time(),
            "you": client.key_id,
            "engines": engines | {"rows": with_load(engines["rows"], self.gateway.router)},
            "traffic": traffic(self.gateway.metrics),
            "draining": self.gateway.draining,
        }

    def do(self, act: Act, client: Client) -> None:
        """Raises NotFound, InvalidInput, Conflict, Unavailable."""
        match act.act:
            case "promote":
                from everlearn.registry.registry import Registry  # heavy: it imports the blob store

                Registry(self.settings).promote(act.subject, actor=client.actor)
            case "revoke":
                if act.subject == client.key_id:
                    raise Conflict("This is the key that asks. Revoke it with `everlearn keys revoke`.")
                revoke_key(self.gateway.db, act.subject, actor=client.actor)
            case "cancel":
                self.jobs.cancel(act.subject, actor=client.actor)
            case "pause":
                self.jobs.pause(act.subject, actor=client.actor)
            case "resume":
                self.jobs.resume(act.subject, actor=client.actor)


def add_console(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes behind the page, which are not part of the API."""
    console = ConsoleService(gateway)

    @app.get("/console/state", include_in_schema=False)
    async def state(request: Request) -> dict[str, Any]:
        return await console.state(await console.administrator(request))

    @app.post("/console/acts", include_in_schema=False)
    async def act(request: Request) -> dict[str, str]:
        """Takes JSON, which a page of another origin cannot send here."""
        client = await console.administrator(request, acts=True)
        wanted = parse(Act, await gateway.body(request, MAX_ACT_BYTES))
        await asyncio.to_thread(console.do, wanted, client)
        return {"done": wanted.act}
