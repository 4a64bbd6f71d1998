"""The OpenAPI document. Bodies come from the protocol's models, since the routes read bytes themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.gateway.pages.reference import REFERENCE, SERVER, RouteDescription
from serve.protocol.batches import BatchRequest
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.jobs import JobRequest
from serve.protocol.messages import CountTokensRequest, MessagesRequest
from serve.protocol.predictions import (
    ClassifyRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TaskRequest,
)
from serve.protocol.responses import ResponsesRequest
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest

REF = "#/components/schemas/{model}"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/classify": ClassifyRequest,
    "/score": ScoreRequest,
    "/v1/score": ScoreRequest,
    "/rerank": RerankRequest,
    "/v1/rerank": RerankRequest,
    "/v2/rerank": RerankRequest,
    "/pooling": PoolingRequest,
    "/models/{model}": TaskRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/batches": BatchRequest,
    "/v1/fine_tuning/jobs": JobRequest,
}
STREAMS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
ERRORS = {
    400: "Invalid request; `param` names the field.",
    401: "No valid API key.",
    403: "The key does not cover this.",
    404: "No such model, file, batch or job.",
    408: "The body came too slowly.",
    409: "It is in use, or was asked for otherwise before.",
    413: "The body is too long.",
    415: "The body is not of the type that this route reads.",
    429: "A limit is spent or the server is full; see Retry-After.",
    500: "The server failed.",
    502: "The engine failed.",
    503: "No engine is ready; see Retry-After.",
    504: "The engine did not answer in time.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for the statuses a route may fail with."""
    return _responses("Error", statuses)


def anthropic_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for a route that answers as Anthropic's API does."""
    return _responses("AnthropicError", statuses)


def _responses(schema: str, statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"$ref": REF.format(model=schema)}}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}


POST_ERRORS = error_responses(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)


def document(app: FastAPI) -> dict[str, Any]:
    """The document, built once and kept on the application."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, definitions = models_json_schema(
            [(model, "validation") for model in BODIES.values()], ref_template=REF
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions["$defs"], Error=ERROR_SCHEMA, AnthropicError=ANTHROPIC_ERROR_SCHEMA)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, model in BODIES.items():
            _complete(schema["paths"][path]["post"], model, stream=path in STREAMS)
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _describe(operation, REFERENCE.get(f"{method} {path}"))
            if path.startswith("/v1/") or path in BODIES:
                for operation in operations.values():
                    operation["security"] = [{"key": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema


def _describe(operation: dict[str, Any], route: RouteDescription | None) -> None:
    """Add the group, description and example that the page at /docs shows."""
    operation["tags"] = [route.group if route else SERVER]
    if route:
        operation["description"] = route.description
        if route.example:
            operation["requestBody"]["content"]["application/json"]["example"] = route.example


def _complete(operation: dict[str, Any], model: type[BaseModel], stream: bool) -> None:
    body = {"schema": {"$ref": REF.format(model=model.__name__)}}
    operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        answer["text/event-stream"] = {}
    operation["responses"]["200"] = {"description": "The answer.", "content": answer}
