"""One family of errors, mapped once to HTTP (``status``, ``code``) and once to the command line (``exit_code``).

A message is for the person who reads it: what was wrong, with which value, and what would be right.
"""

from __future__ import annotations

from typing import ClassVar


class EverlearnError(Exception):
    """Base of every error that everlearn raises on purpose.

    ``param`` names the input at fault (a request field, an option, a setting), where one is.
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidInput(EverlearnError):
    """A value that cannot be right, whatever the state of the system."""

    exit_code = 2
    status = 400
    code = "invalid_input"


class ConfigError(EverlearnError):
    """A setting that is unknown, misspelt or of the wrong type."""

    exit_code = 2
    status = 400
    code = "config_error"


class NotFound(EverlearnError):
    """A model, version, alias, key or file that does not exist."""

    status = 404
    code = "not_found"


class Conflict(EverlearnError):
    """The state of the system forbids it: something still refers to the thing, or changed meanwhile."""

    status = 409
    code = "conflict"


class Corrupt(EverlearnError):
    """Stored bytes are not the bytes that were written; the message names the file."""

    status = 500
    code = "corrupt"


class Unavailable(EverlearnError):
    """Not now: a server, a store or a database does not answer."""

    status = 503
    code = "unavailable"


class Unsupported(EverlearnError):
    """Understood, and not offered."""

    status = 400
    code = "unsupported"


class AuthError(EverlearnError):
    """No valid key came with the request."""

    status = 401
    code = "invalid_api_key"


class Forbidden(EverlearnError):
    """The key is valid and does not cover this."""

    status = 403
    code = "forbidden"


class RateLimited(EverlearnError):
    """The key's limit is spent; it has room again in ``retry_after_s`` seconds."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
