"""`/v1/files`: OpenAI's API over the table of files. Each key sees only its own."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response

from continual.queue.files import PURPOSES, Files
from everlearn.errors import Corrupt, InvalidInput
from serve.gateway.http.file_upload import receive_file
from serve.gateway.pages.openapi import error_responses
from serve.gateway.routes.paging import described, limit_in, listed, page, parameter
from serve.gateway.routes.service import READ_ERRORS, WRITE_ERRORS, ResourceService
from serve.gateway.state import Gateway
from serve.protocol.jobs import file_object

MAX_FILES = 10_000
CHECKS_AT_ONCE = 2
"""Uploads that are being read, each by a process of its own."""


def add_files(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""
    service, files = ResourceService(gateway), Files(gateway.settings, gateway.db)
    checks = asyncio.Semaphore(CHECKS_AT_ONCE)

    @app.post("/v1/files", responses=WRITE_ERRORS, openapi_extra=UPLOAD)
    async def upload_file(request: Request) -> dict[str, Any]:
        client = await service.writer(request)
        return file_object(await receive_file(request, files, client, checks))

    @app.get("/v1/files", responses=READ_ERRORS, openapi_extra=described(*FILE_PAGE))
    async def list_files(request: Request) -> dict[str, Any]:
        client = await service.reader(request)
        query = request.query_params
        limit = limit_in(query, MAX_FILES, MAX_FILES)
        if (order := query.get("order", "desc")) not in ("asc", "desc"):
            raise InvalidInput("Invalid 'order': asc or desc.", param="order")
        found = await page(
            limit, files.list, after=query.get("after"), ascending=order == "asc",
            purpose=query.get("purpose"), client=client,
        )  # fmt: skip
        return listed([file_object(file) for file in found], limit)

    @app.get("/v1/files/{file_id}", responses=READ_ERRORS)
    async def get_file(request: Request, file_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        return file_object(await asyncio.to_thread(files.get, file_id, client=client))

    @app.delete("/v1/files/{file_id}", responses=READ_ERRORS | error_responses(409))
    async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
        client = await service.reader(request)
        gone = await asyncio.to_thread(files.delete, file_id, client=client)
        return {"id": gone.id, "object": "file", "deleted": True}

    @app.get("/v1/files/{file_id}/content", responses=READ_ERRORS, response_class=Response)
    async def get_content(request: Request, file_id: str) -> Response:
        client = await service.reader(request)
        file = await asyncio.to_thread(files.get, file_id, client=client)
        path = files.path(file)
        if not path.is_file():
            raise Corrupt(f"The bytes of {file.id} are not there any more.")
        return FileResponse(
            path, filename=file.filename, media_type="application/octet-stream",
            headers={"x-content-type-options": "nosniff"},
        )  # fmt: skip


FILE_PAGE = (
    parameter("after", type="string"),
    parameter("limit", type="integer", minimum=1, maximum=MAX_FILES),
    parameter("order", type="string", enum=["asc", "desc"]),
    parameter("purpose", type="string"),
)
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
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}
