"""`/v1/chat/completions` and `/v1/completions`: text from a model, whole or streamed."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.gateway.formats.translator import PassThrough
from serve.gateway.pages.openapi import POST_ERRORS
from serve.gateway.routing.work import generation
from serve.gateway.state import Gateway
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest


def add_chat(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    @app.post("/v1/chat/completions", responses=POST_ERRORS, response_class=Response)
    async def chat_completions(request: Request) -> Response:
        exchange, chat = await gateway.accept(request, ChatRequest)
        return gateway.relay(exchange, generation("/v1/chat/completions", chat), PassThrough())

    @app.post("/v1/completions", responses=POST_ERRORS, response_class=Response)
    async def completions(request: Request) -> Response:
        exchange, completion = await gateway.accept(request, CompletionRequest)
        return gateway.relay(exchange, generation("/v1/completions", completion), PassThrough())
