"""`/tokenize` and `/detokenize` as vLLM has them, by the engine's own tokenizer and chat template."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.gateway.formats.translator import PassThrough
from serve.gateway.pages.openapi import POST_ERRORS
from serve.gateway.routing.work import Work
from serve.gateway.state import Gateway
from serve.protocol.parsing import encode
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest


def add_tokens(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    async def pass_on(request: Request, kind: type[TokenizeRequest] | type[DetokenizeRequest]) -> Response:
        exchange, body = await gateway.accept(request, kind)
        work = Work(request.url.path, encode(body), body.model, ("generate",), stream=False)
        return gateway.relay(exchange, work, PassThrough())

    @app.post("/tokenize", responses=POST_ERRORS, response_class=Response)
    async def tokenize(request: Request) -> Response:
        return await pass_on(request, TokenizeRequest)

    @app.post("/detokenize", responses=POST_ERRORS, response_class=Response)
    async def detokenize(request: Request) -> Response:
        return await pass_on(request, DetokenizeRequest)
