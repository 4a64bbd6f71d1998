"""Authentication by API keys, which are cached briefly and looked up in a thread."""

import asyncio
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from everlearn.errors import AuthError, ConfigError, Forbidden, Unavailable
from everlearn.registry.keys import covers, find_key, is_active, keys_required
from everlearn.registry.tables import ApiKey
from everlearn.settings import ServeSettings
from serve.gateway.limits.origin import is_loopback, is_of_another_page, names_this_machine, refuse_foreign

MAX_CACHED = 4096

log = structlog.get_logger()


class Authenticator:
    """Admits requests. Until the first key exists, a server on loopback needs none; it never becomes open again by itself."""

    def __init__(self, db: Engine, settings: ServeSettings) -> None:
        self._db = db
        self._ttl_s = settings.keys_cache_ttl_s
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="keys")
        self._cache: dict[bytes, tuple[float, ApiKey | None]] = {}
        self._trusted = settings.cors_origins
        self.loopback = is_loopback(settings.host)
        self.keys_required = keys_required(db)
        if not self.loopback and not self.keys_required:
            raise ConfigError(
                f"serve.host is {settings.host}, which others can reach, and there is no API key. "
                "Create one with `everlearn keys create NAME`, or bind 127.0.0.1.",
                param="serve.host",
            )

    async def watch(self) -> None:
        """Notice the first key soon after it was made, and `everlearn keys` making the server open again. Runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.1, self._ttl_s))
            try:
                required = await loop.run_in_executor(self._threads, keys_required, self._db)
            except SQLAlchemyError as error:
                log.error("keys_unreadable", error=type(error).__name__)
            else:
                self.keys_required = required or not self.loopback

    async def admit(self, request: Request) -> ApiKey | None:
        """The key of a request, or None where none is needed. Raises AuthError, Forbidden, Unavailable."""
        if not self.keys_required:
            refuse_foreign(request, self._trusted)
            return None
        key = await self._find(_secret(request))
        if key is None or not is_active(key):
            raise AuthError("Incorrect API key provided.")
        return key

    async def admit_reader(self, request: Request) -> None:
        """Admit a reader of metrics, which need no key on this machine, except for pages of other sites. Raises as `admit`."""
        here = self.loopback and names_this_machine(request)
        if not here or is_of_another_page(request, self._trusted):
            await self.admit(request)

    async def _find(self, secret: str) -> ApiKey | None:
        digest = hashlib.sha256(secret.encode()).digest()
        now = time.monotonic()
        cached = self._cache.get(digest)
        if cached and cached[0] > now:
            return cached[1]
        try:
            loop = asyncio.get_running_loop()
            key = await loop.run_in_executor(self._threads, find_key, self._db, secret)
        except SQLAlchemyError as error:
            log.error("keys_unreadable", error=type(error).__name__)
            raise Unavailable("API keys cannot be checked right now.") from None
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = (now + self._ttl_s, key)
        return key


def check_scope(key: ApiKey | None, model: str) -> None:
    """Raises Forbidden when the key does not cover the model, whether or not that exists."""
    if key and not covers(key, model):
        raise Forbidden("This API key does not cover the requested model.", param="model")


def _secret(request: Request) -> str:
    """The key as OpenAI's clients send it (`Authorization: Bearer`), or Anthropic's (`x-api-key`). Raises AuthError."""
    bearer, bare = (request.headers.getlist(name) for name in ("authorization", "x-api-key"))
    if len(bearer) > 1 or len(bare) > 1:
        raise AuthError("More than one header of the same name brought an API key.")
    secrets = {_of_bearer(value) for value in bearer} | {value.strip() for value in bare}
    if len(secrets) > 1:
        raise AuthError("The Authorization and x-api-key headers bring different API keys.")
    secret = secrets.pop() if secrets else ""
    if not secret:
        raise AuthError("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    return secret


def _of_bearer(value: str) -> str:
    scheme, _, secret = value.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
