"""`/v1/messages`: Anthropic's API, answered by chat completions."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.gateway.formats.messages import (
    MessageTranslator,
    TokenCountTranslator,
    describe_as_anthropic,
    to_chat,
    to_tokenize,
)
from serve.gateway.http.exchange import exchange_of
from serve.gateway.pages.openapi import anthropic_errors
from serve.gateway.routing.work import Work, generation
from serve.gateway.state import Gateway
from serve.protocol.messages import CountTokensRequest, MessagesRequest
from serve.protocol.parsing import encode

ERRORS = anthropic_errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)


def add_messages(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    @app.post("/v1/messages", responses=ERRORS, response_class=Response)
    async def messages(request: Request) -> Response:
        _speak_anthropic(request)
        exchange, wanted = await gateway.accept(request, MessagesRequest)
        work = generation("/v1/chat/completions", to_chat(wanted), keep_usage=True)
        return gateway.relay(exchange, work, MessageTranslator(wanted.model))

    @app.post("/v1/messages/count_tokens", responses=ERRORS, response_class=Response)
    async def count_tokens(request: Request) -> Response:
        _speak_anthropic(request)
        exchange, wanted = await gateway.accept(request, CountTokensRequest)
        work = Work("/tokenize", encode(to_tokenize(wanted)), wanted.model, "generate", stream=False)
        return gateway.relay(exchange, work, TokenCountTranslator())


def _speak_anthropic(request: Request) -> None:
    """Also where the answer is an error, and with the name under which its clients look for the request's id."""
    exchange = exchange_of(request)
    exchange.describe = describe_as_anthropic
    exchange.headers.append((b"request-id", exchange.id.encode()))
