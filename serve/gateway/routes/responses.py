"""`/v1/responses`: OpenAI's Responses API, answered by chat completions."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.gateway.formats.responses import ResponseTranslator, to_chat
from serve.gateway.pages.openapi import POST_ERRORS
from serve.gateway.routing.work import generation
from serve.gateway.state import Gateway
from serve.protocol.responses import ResponsesRequest


def add_responses(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    @app.post("/v1/responses", responses=POST_ERRORS, response_class=Response)
    async def responses(request: Request) -> Response:
        exchange, wanted = await gateway.accept(request, ResponsesRequest)
        work = generation("/v1/chat/completions", to_chat(wanted), keep_usage=True)
        return gateway.relay(exchange, work, ResponseTranslator(wanted))
