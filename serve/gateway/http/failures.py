"""The errors that only a gateway has, and the HTTP responses that all errors become, in OpenAI's form."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from everlearn.errors import EverlearnError, NotFound, RateLimited, Unavailable
from serve.protocol.parsing import error_body


class TooLarge(EverlearnError):
    """The request body is longer than this server reads."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(EverlearnError):
    """The body is not plain JSON."""

    status = 415
    code = "unsupported_media_type"


class SlowBody(EverlearnError):
    """The client did not send its body in time."""

    status = 408
    code = "request_timeout"


class ModelNotFound(NotFound):
    """No engine here serves a model of that name."""

    code = "model_not_found"


class NoBackend(Unavailable):
    """No engine can take this request now."""

    code = "backend_unavailable"

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GivenUp(NoBackend):
    """Every engine of the model crashed too often to be restarted: waiting is of no use."""


class BrokeOff(NoBackend):
    """An engine took the request and died before the answer began: perhaps because of this very request."""


class Draining(NoBackend):
    """This server is shutting down."""

    code = "shutting_down"


class Overloaded(RateLimited):
    """More requests are in flight than the server admits."""

    code = "overloaded"


class BudgetSpent(RateLimited):
    """The key's tokens of this month are used up: retrying soon is of no use."""

    code = "insufficient_quota"


class BackendFailed(EverlearnError):
    """The engine broke or sent an invalid answer; its own message goes to no client."""

    status = 502
    code = "backend_error"


class BackendTimeout(EverlearnError):
    """The engine accepted the request and then fell silent."""

    status = 504
    code = "backend_timeout"


class BackendRefused(EverlearnError):
    """The engine's own refusal of this request, a 4xx, handed on."""

    code = "backend_refused"

    def __init__(self, status: int, message: str, type: str, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param)
        self.refused_status = status
        self.type = type
        self.refused_code = code


def describe(error: EverlearnError) -> tuple[int, dict[str, Any]]:
    """Status and OpenAI error object of an error."""
    if isinstance(error, BackendRefused):
        status = error.refused_status
        return status, error_body(error.message, error.type, error.param, error.refused_code)
    kind = error.code if isinstance(error, BudgetSpent) else _type(error.status)
    return error.status, error_body(error.message, kind, error.param, error.code)


Describe = Callable[[EverlearnError], tuple[int, dict[str, Any]]]


def answer(error: EverlearnError, describe: Describe = describe) -> JSONResponse:
    """The HTTP response to an error."""
    status, body = describe(error)
    return JSONResponse(body, status, headers=_headers(error))


def _headers(error: EverlearnError) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, BudgetSpent):
        headers["x-should-retry"] = "false"  # OpenAI's clients respect it
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 408:
        headers["connection"] = "close"
    return headers


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
