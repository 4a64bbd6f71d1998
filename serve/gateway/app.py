"""The gateway's ASGI application: its middleware, its routes, and what an error answers."""

from functools import partial

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from everlearn.errors import EverlearnError
from everlearn.settings import Settings
from serve.gateway.http.exchange import exchange_of
from serve.gateway.http.failures import answer
from serve.gateway.http.middleware import RequestMiddleware
from serve.gateway.pages.openapi import document
from serve.gateway.pages.static import add_pages
from serve.gateway.routes.batches import add_batches
from serve.gateway.routes.chat import add_chat
from serve.gateway.routes.console import add_console
from serve.gateway.routes.embeddings import add_embeddings
from serve.gateway.routes.files import add_files
from serve.gateway.routes.fine_tuning import add_fine_tuning
from serve.gateway.routes.head_route import HeadRoute
from serve.gateway.routes.health import add_health
from serve.gateway.routes.messages import add_messages
from serve.gateway.routes.models import add_models
from serve.gateway.routes.predictions import add_predictions
from serve.gateway.routes.responses import add_responses
from serve.gateway.routes.tokens import add_tokens
from serve.gateway.routes.updates import add_updates
from serve.gateway.state import Gateway
from serve.protocol.parsing import error_body
from serve.tracing import open_tracer

ALL = ["*"]
CORS_MAX_AGE_S = 600


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Raises ConfigError when it would be open to others without a key."""
    gateway = Gateway(settings)
    app = FastAPI(
        title="everlearn",
        version="1",
        description="Small language models behind OpenAI's API.",
        lifespan=gateway.running,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        root_path=settings.serve.root_path,
        redirect_slashes=False,
    )
    app.router.route_class = HeadRoute
    app.state.gateway = gateway
    if origins := settings.serve.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=ALL, allow_headers=ALL, expose_headers=ALL,
            max_age=CORS_MAX_AGE_S,
        )  # fmt: skip
    app.add_middleware(RequestMiddleware, metrics=gateway.metrics, tracer=open_tracer("gateway"))
    app.add_exception_handler(EverlearnError, _everlearn_error)
    app.add_exception_handler(HTTPException, _http_error)
    add_chat(app, gateway)
    add_responses(app, gateway)
    add_embeddings(app, gateway)
    add_predictions(app, gateway)
    add_messages(app, gateway)
    add_tokens(app, gateway)
    add_models(app, gateway)
    add_files(app, gateway)
    add_batches(app, gateway)
    add_fine_tuning(app, gateway)
    add_updates(app, gateway)
    add_health(app, gateway)
    add_console(app, gateway)
    add_pages(app)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app


async def _everlearn_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EverlearnError)
    exchange = exchange_of(request)
    exchange.error = error.code
    return answer(error, exchange.describe)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404:
        method = "GET" if request.method == "HEAD" else request.method  # HEAD has the headers of GET's answer
        message = f"Unknown request URL: {method} {request.url.path[:200]}."
        return JSONResponse(error_body(message, "invalid_request_error", None, "unknown_url"), 404)
    message = error.detail if status != 405 else f"{request.method} is not allowed here."
    body = error_body(message, "invalid_request_error", None, "method_not_allowed" if status == 405 else None)
    return JSONResponse(body, status, headers=error.headers)
