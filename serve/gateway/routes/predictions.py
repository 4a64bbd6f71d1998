"""Labels, scores, an order and answers in a text: `/classify`, `/score`, `/rerank`, `/pooling`, and `/models/NAME`."""

from fastapi import FastAPI, Request
from jiter import from_json
from pydantic_core import to_json
from starlette.responses import Response

from serve.gateway.formats.translator import PassThrough, reading_answer
from serve.gateway.pages.openapi import POST_ERRORS
from serve.gateway.routing.work import Work
from serve.gateway.state import Gateway
from serve.protocol.body import ModelRequest
from serve.protocol.parsing import encode
from serve.protocol.predictions import (
    ClassifyRequest,
    PoolingRequest,
    Question,
    RerankRequest,
    ScoreRequest,
    TaskRequest,
)

CLASSIFY, SCORE, TOKENS, ANSWERS = "classify", "score", "token_classify", "question_answer"


class AnswerAlone(PassThrough):
    """Without the usage that the engine tells beside it."""

    def whole(self, answer: bytes) -> bytes:
        """Raises MalformedAnswer where there is none."""
        with reading_answer():
            return to_json(from_json(answer)["answer"])


def add_predictions(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    async def pass_on(request: Request, path: str, kind: type[ModelRequest], task: str) -> Response:
        exchange, body = await gateway.accept(request, kind)
        return gateway.relay(
            exchange, Work(path, encode(body), body.model, (task,), stream=False), PassThrough()
        )

    @app.post("/classify", responses=POST_ERRORS, response_class=Response)
    async def classify(request: Request) -> Response:
        return await pass_on(request, "/classify", ClassifyRequest, CLASSIFY)

    @app.post("/pooling", responses=POST_ERRORS, response_class=Response)
    async def pooling(request: Request) -> Response:
        return await pass_on(request, "/pooling", PoolingRequest, TOKENS)

    @app.post("/score", responses=POST_ERRORS, response_class=Response)
    @app.post("/v1/score", responses=POST_ERRORS, response_class=Response)
    async def score(request: Request) -> Response:
        return await pass_on(request, "/score", ScoreRequest, SCORE)

    @app.post("/rerank", responses=POST_ERRORS, response_class=Response)
    @app.post("/v1/rerank", responses=POST_ERRORS, response_class=Response)
    @app.post("/v2/rerank", responses=POST_ERRORS, response_class=Response)
    async def rerank(request: Request) -> Response:
        return await pass_on(request, "/rerank", RerankRequest, SCORE)

    @app.post("/models/{model:path}", responses=POST_ERRORS, response_class=Response)
    async def task(request: Request, model: str) -> Response:
        """A question is for a model that answers it from its context, a text for one that labels it or its tokens."""
        exchange, body = await gateway.accept(request, TaskRequest, named=model)
        tasks = (ANSWERS,) if isinstance(body.inputs, Question) else (TOKENS, CLASSIFY)
        work = Work("/models", encode(body), body.model, tasks, stream=False)
        return gateway.relay(exchange, work, AnswerAlone())
