"""`/v1/files` and `/v1/fine_tuning/jobs`: OpenAI's API over the tables of files and jobs.

The gateway writes rows and reads them; a worker's reconciler takes it from there. Each key sees only its own.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response

from continual.files import Client, Files
from continual.jobs import Jobs, why_no_worker
from everlearn.errors import Corrupt, InvalidInput, NotFound, Unavailable
from everlearn.settings import Settings
from serve.gateway.auth import check_scope
from serve.gateway.body import read_body
from serve.gateway.exchange import exchange_of
from serve.gateway.failures import Draining
from serve.gateway.fine_tuning_upload import receive_file
from serve.gateway.openapi import error_responses
from serve.protocol import parse
from serve.protocol_jobs import JobRequest, event_id, event_object, file_object, job_object

if TYPE_CHECKING:
    from serve.gateway.app import Gateway

MAX_JOBS = 100
MAX_FILES = 10_000
MAX_IDEMPOTENCY_CHARS = 256
READ_ERRORS = error_responses(400, 401, 403, 404, 500, 503)
WRITE_ERRORS = error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)

T = TypeVar("T")


def add_fine_tuning(app: FastAPI, gateway: "Gateway", settings: Settings) -> None:
    """The routes."""
    jobs = Jobs(settings)
    desk = Desk(gateway, jobs, Files(settings, jobs.database), why_no_worker(settings))
    _add_files(app, desk)
    _add_jobs(app, desk)


class Desk:
    """What the routes share: who may ask, and the tables."""

    def __init__(self, gateway: "Gateway", jobs: Jobs, files: Files, why_closed: str | None) -> None:
        self.gateway = gateway
        self.jobs = jobs
        self.files = files
        self.why_closed = why_closed

    async def client(self, request: Request) -> Client:
        """Who reads. Raises AuthError, Forbidden, Unavailable."""
        exchange = exchange_of(request)
        exchange.key = await self.gateway.keeper.admit(request)
        return Client(exchange.key.id if exchange.key else None)

    async def writer(self, request: Request) -> Client:
        """Who makes something, within limits. Raises Draining, RateLimited, too, and Unavailable where nobody trains."""
        if self.gateway.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        client = await self.client(request)
        exchange = exchange_of(request)
        if exchange.key:
            exchange.headers += self.gateway.quotas.admit(exchange.key)
        if self.why_closed:
            raise Unavailable(self.why_closed)
        return client

    async def create_job(self, request: Request) -> dict[str, Any]:
        client = await self.writer(request)
        exchange = exchange_of(request)
        body = parse(JobRequest, await read_body(request, self.gateway.settings.max_body_bytes))
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


def _add_files(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/files", responses=WRITE_ERRORS, openapi_extra=UPLOAD)
    async def upload_file(request: Request) -> dict[str, Any]:
        client = await desk.writer(request)
        return file_object(await receive_file(request, desk.files, client))

    @app.get("/v1/files", responses=READ_ERRORS, openapi_extra=_query(FILE_PAGE))
    async def list_files(request: Request) -> dict[str, Any]:
        client = await desk.client(request)
        query = request.query_params
        limit = _limit(query, MAX_FILES, MAX_FILES)
        if (order := query.get("order", "desc")) not in ("asc", "desc"):
            raise InvalidInput("Invalid 'order': asc or desc.", param="order")
        found = await _page(
            limit, desk.files.list, after=query.get("after"), ascending=order == "asc",
            purpose=query.get("purpose"), client=client,
        )  # fmt: skip
        return _list([file_object(file) for file in found], limit)

    @app.get("/v1/files/{file_id}", responses=READ_ERRORS)
    async def get_file(request: Request, file_id: str) -> dict[str, Any]:
        client = await desk.client(request)
        return file_object(await asyncio.to_thread(desk.files.get, file_id, client=client))

    @app.delete("/v1/files/{file_id}", responses=READ_ERRORS | error_responses(409))
    async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
        client = await desk.client(request)
        gone = await asyncio.to_thread(desk.files.delete, file_id, client=client)
        return {"id": gone.id, "object": "file", "deleted": True}

    @app.get("/v1/files/{file_id}/content", responses=READ_ERRORS, response_class=Response)
    async def get_content(request: Request, file_id: str) -> Response:
        client = await desk.client(request)
        file = await asyncio.to_thread(desk.files.get, file_id, client=client)
        path = desk.files.path(file)
        if not path.is_file():
            raise Corrupt(f"The bytes of {file.id} are not there any more.")
        return FileResponse(
            path, filename=file.filename, media_type="application/octet-stream",
            headers={"x-content-type-options": "nosniff"},
        )  # fmt: skip


def _add_jobs(app: FastAPI, desk: Desk) -> None:
    path = "/v1/fine_tuning/jobs"

    @app.post(path, responses=WRITE_ERRORS)
    async def create_job(request: Request) -> dict[str, Any]:
        return await desk.create_job(request)

    @app.get(path, responses=READ_ERRORS, openapi_extra=_query(PAGE))
    async def list_jobs(request: Request) -> dict[str, Any]:
        client = await desk.client(request)
        query = request.query_params
        limit = _limit(query, 20, MAX_JOBS)
        metadata = {
            name[len("metadata[") : -1]: value
            for name, value in query.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = await _page(limit, desk.jobs.list, after=query.get("after"), metadata=metadata, client=client)
        return _list([job_object(job) for job in found], limit)

    @app.get(path + "/{job_id}", responses=READ_ERRORS)
    async def get_job(request: Request, job_id: str) -> dict[str, Any]:
        client = await desk.client(request)
        return job_object(await asyncio.to_thread(desk.jobs.get, job_id, client=client))

    @app.post(path + "/{job_id}/cancel", responses=READ_ERRORS)
    async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
        client = await desk.client(request)
        return job_object(await asyncio.to_thread(desk.jobs.cancel, job_id, client=client))

    @app.get(path + "/{job_id}/events", responses=READ_ERRORS, openapi_extra=_query(PAGE))
    async def list_events(request: Request, job_id: str) -> dict[str, Any]:
        """The newest first."""
        client = await desk.client(request)
        await asyncio.to_thread(desk.jobs.get, job_id, client=client)
        limit = _limit(request.query_params, 20, MAX_JOBS)
        after = _event_number(request.query_params.get("after"))
        found = await _page(limit, desk.jobs.events, job_id, after=after, newest_first=True)
        return _list([event_object(event) for event in found], limit)

    @app.get(path + "/{job_id}/checkpoints", responses=READ_ERRORS)
    async def list_checkpoints(request: Request, job_id: str) -> dict[str, Any]:
        """Checkpoints are not models here: always empty."""
        client = await desk.client(request)
        await asyncio.to_thread(desk.jobs.get, job_id, client=client)
        return _list([], 1)


async def _page(limit: int, find: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """One more than the limit, so that it shows whether there are more."""
    return await asyncio.to_thread(find, *arguments, limit=limit + 1, **named)


def _list(objects: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    shown = objects[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(objects) > limit,
    }


def _limit(query: Mapping[str, str], default: int, most: int) -> int:
    given = query.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= most):
        raise InvalidInput(f"Invalid 'limit': an integer from 1 to {most}.", param="limit")
    return int(given)


def _event_number(after: str | None) -> int | None:
    if after is None:
        return None
    digits = after.removeprefix(event_id(0)[:-1])
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise InvalidInput(f"Invalid 'after': {after[:80]!r} is not an event.", param="after")
    return int(digits)


def _query(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {"parameters": parameters}


def _parameter(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


PAGE = [_parameter("after", type="string"), _parameter("limit", type="integer", minimum=1, maximum=MAX_JOBS)]
FILE_PAGE = [
    _parameter("after", type="string"),
    _parameter("limit", type="integer", minimum=1, maximum=MAX_FILES),
    _parameter("order", type="string", enum=["asc", "desc"]),
    _parameter("purpose", type="string"),
]
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                    },
                }
            }
        },
    }
}
