"""`/v1/fine_tuning/jobs`: OpenAI's API over the table of jobs.

The gateway writes and reads rows; a worker takes the jobs from there. Each key sees only its own.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request

from continual.queue.files import Files
from continual.queue.jobs import Jobs, why_no_worker
from continual.queue.states import Job
from everlearn.errors import Forbidden, InvalidInput, NotFound, Unavailable
from everlearn.registry.keys import may_train
from serve.gateway.http.exchange import exchange_of
from serve.gateway.limits.auth import check_scope
from serve.gateway.routes.paging import PAGE, described, limit_in, listed, page
from serve.gateway.routes.service import READ_ERRORS, WRITE_ERRORS, ResourceService
from serve.gateway.state import Gateway
from serve.protocol.jobs import JobRequest, event_id, event_object, job_object
from serve.protocol.parsing import parse

MAX_IDEMPOTENCY_CHARS = 256
NO_TRAINER = (
    "This API key may not create training jobs, which can move the version that is served. "
    "`everlearn keys create NAME --train` makes one that may."
)


class JobService(ResourceService):
    """Creates jobs."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.jobs = Jobs(gateway.settings, gateway.db)
        self.files = Files(gateway.settings, gateway.db)
        self.why_closed = why_no_worker(gateway.settings)

    async def create_job(self, request: Request) -> dict[str, Any]:
        """Create the job of a request. Raises Forbidden, Unavailable where no worker trains, InvalidInput, NotFound."""
        client = await self.writer(request)
        exchange = exchange_of(request)
        if exchange.key and not may_train(exchange.key):
            raise Forbidden(NO_TRAINER)
        if self.why_closed:
            raise Unavailable(self.why_closed)
        body = parse(JobRequest, await self.gateway.body(request))
        check_scope(exchange.key, body.model)
        token = request.headers.get("idempotency-key")
        if token is not None and not 0 < len(token) <= MAX_IDEMPOTENCY_CHARS:
            raise InvalidInput(
                f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_CHARS} characters.", param="idempotency-key"
            )

        def create() -> dict[str, Any]:
            try:
                file = self.files.get(body.training_file, client=client)
            except NotFound as error:
                raise NotFound(error.message, param="training_file") from None
            job = self.jobs.create(
                model=body.model, training_file=file.id, recipe=body.recipe(file.filename),
                validation_file=body.validation_file, suffix=body.suffix, request=body.said(), client=client,
                idempotency_key=token,
            )  # fmt: skip
            return job_object(job)

        made = await asyncio.to_thread(create)
        exchange.model = self.gateway.router.known_model(made["model"]) or exchange.model
        return made


def add_fine_tuning(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""
    service = JobService(gateway)
    path = "/v1/fine_tuning/jobs"

    @app.post(path, responses=WRITE_ERRORS)
    async def create_job(request: Request) -> dict[str, Any]:
        return await service.create_job(request)

    @app.get(path, responses=READ_ERRORS, openapi_extra=described(*PAGE))
    async def list_jobs(request: Request) -> dict[str, Any]:
        client = await service.reader(request)
        query = request.query_params
        limit = limit_in(query, 20)
        metadata = {
            name[len("metadata[") : -1]: value
            for name, value in query.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = await page(
            limit, service.jobs.list, after=query.get("after"), metadata=metadata, client=client
        )
        return listed([job_object(job) for job in found], limit)

    @app.get(path + "/{job_id}", responses=READ_ERRORS)
    async def get_job(request: Request, job_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        return job_object(await asyncio.to_thread(service.jobs.get, job_id, client=client))

    async def changed(change: Callable[..., Job], request: Request, job_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        return job_object(await asyncio.to_thread(change, job_id, client=client))

    @app.post(path + "/{job_id}/cancel", responses=READ_ERRORS)
    async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
        return await changed(service.jobs.cancel, request, job_id)

    @app.post(path + "/{job_id}/pause", responses=READ_ERRORS)
    async def pause_job(request: Request, job_id: str) -> dict[str, Any]:
        """A queued job waits at once; a running one (its status says so until then) once it is at a point to go on from."""
        return await changed(service.jobs.pause, request, job_id)

    @app.post(path + "/{job_id}/resume", responses=READ_ERRORS)
    async def resume_job(request: Request, job_id: str) -> dict[str, Any]:
        """A paused job goes on where it was, once a worker is free."""
        return await changed(service.jobs.resume, request, job_id)

    @app.get(path + "/{job_id}/events", responses=READ_ERRORS, openapi_extra=described(*PAGE))
    async def list_events(request: Request, job_id: str) -> dict[str, Any]:
        """The newest first."""
        client = await service.reader(request)
        await asyncio.to_thread(service.jobs.get, job_id, client=client)
        limit = limit_in(request.query_params, 20)
        after = _event_number(request.query_params.get("after"))
        found = await page(limit, service.jobs.events, job_id, after=after, newest_first=True)
        return listed([event_object(event) for event in found], limit)

    @app.get(path + "/{job_id}/checkpoints", responses=READ_ERRORS)
    async def list_checkpoints(request: Request, job_id: str) -> dict[str, Any]:
        """Checkpoints are not models here: always empty."""
        client = await service.reader(request)
        await asyncio.to_thread(service.jobs.get, job_id, client=client)
        return listed([], 1)


def _event_number(after: str | None) -> int | None:
    if after is None:
        return None
    digits = after.removeprefix(event_id(0)[:-1])
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise InvalidInput(f"Invalid 'after': {after[:80]!r} is not an event.", param="after")
    return int(digits)
