"""Authentication and limits for the routes over tables: files, batches, jobs, models, the console."""

from fastapi import Request

from continual.queue.files import Client
from serve.gateway.http.exchange import exchange_of
from serve.gateway.http.failures import Draining
from serve.gateway.pages.openapi import error_responses
from serve.gateway.state import Gateway

READ_ERRORS = error_responses(400, 401, 403, 404, 500, 503)
WRITE_ERRORS = error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)


class ResourceService:
    """Admits the clients of such a route."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def reader(self, request: Request) -> Client:
        """Admit a client that reads. Raises AuthError, Forbidden, Unavailable."""
        exchange = exchange_of(request)
        exchange.key = await self.gateway.authenticator.admit(request)
        return Client(exchange.key.id if exchange.key else None)

    async def writer(self, request: Request) -> Client:
        """Admit a client that creates something, within its limits. Raises as `reader`, and Draining, Overloaded, RateLimited."""
        if self.gateway.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        client = await self.reader(request)
        exchange = exchange_of(request)
        self.gateway.take_place(exchange)
        if exchange.key:
            exchange.headers += await self.gateway.quotas.admit(exchange.key)
        return client
