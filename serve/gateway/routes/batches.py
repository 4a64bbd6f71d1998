"""`/v1/batches`: OpenAI's API over the table of batches; ``serve.batches`` works on them. Each key sees only its own."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request

from everlearn.errors import Unavailable
from serve.batches.table import Batches
from serve.gateway.http.exchange import exchange_of
from serve.gateway.routes.paging import PAGE, described, limit_in, listed, page
from serve.gateway.routes.service import READ_ERRORS, WRITE_ERRORS, ResourceService
from serve.gateway.state import Gateway
from serve.protocol.batches import BatchRequest, batch_object
from serve.protocol.parsing import parse

CLOSED = "Batches are switched off here: set EVERLEARN_SERVE__BATCH_REQUESTS (serve.batch_requests) above 0."


def add_batches(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""
    batches = Batches(gateway.settings, gateway.db)
    service = ResourceService(gateway)
    path = "/v1/batches"

    @app.post(path, responses=WRITE_ERRORS)
    async def create_batch(request: Request) -> dict[str, Any]:
        client = await service.writer(request)
        if not gateway.settings.serve.batch_requests:
            raise Unavailable(CLOSED)
        gateway.meter.admit(exchange_of(request).key)
        body = parse(BatchRequest, await gateway.body(request))
        made = await asyncio.to_thread(
            batches.create, endpoint=body.endpoint, input_file=body.input_file_id, labels=body.metadata or {},
            client=client,
        )  # fmt: skip
        return batch_object(made)

    @app.get(path, responses=READ_ERRORS, openapi_extra=described(*PAGE))
    async def list_batches(request: Request) -> dict[str, Any]:
        client = await service.reader(request)
        limit = limit_in(request.query_params, 20)
        found = await page(limit, batches.list, after=request.query_params.get("after"), client=client)
        return listed([batch_object(batch) for batch in found], limit)

    @app.get(path + "/{batch_id}", responses=READ_ERRORS)
    async def get_batch(request: Request, batch_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        return batch_object(await asyncio.to_thread(batches.get, batch_id, client=client))

    @app.post(path + "/{batch_id}/cancel", responses=READ_ERRORS)
    async def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        return batch_object(await asyncio.to_thread(batches.cancel, batch_id, client=client))
