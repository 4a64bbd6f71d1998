"""`/v1/embeddings`: a vector for each text, and for each image."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.gateway.formats.translator import PassThrough
from serve.gateway.pages.openapi import POST_ERRORS
from serve.gateway.routing.work import Work
from serve.gateway.state import Gateway
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.parsing import encode


def add_embeddings(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    @app.post("/v1/embeddings", responses=POST_ERRORS, response_class=Response)
    async def embeddings(request: Request) -> Response:
        exchange, embedding = await gateway.accept(request, EmbeddingRequest)
        work = Work("/v1/embeddings", encode(embedding), embedding.model, embedding.tasks, stream=False)
        return gateway.relay(exchange, work, PassThrough())
