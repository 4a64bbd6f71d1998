"""Who asks for rows of the database, and may write some."""

from fastapi import Request

from continual.queue.files import Client
from serve.gateway.http.exchange import exchange_of
from serve.gateway.http.failures import Draining
from serve.gateway.pages.openapi import error_responses
from serve.gateway.state import Gateway

READ_ERRORS = error_responses(400, 401, 403, 404, 500, 503)
WRITE_ERRORS = error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)


class Desk:
    """What the routes over tables share."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def client(self, request: Request) -> Client:
        """Who reads. Raises AuthError, Forbidden, Unavailable."""
        exchange = exchange_of(request)
        exchange.key = await self.gateway.keeper.admit(request)
        return Client(exchange.key.id if exchange.key else None)

    async def writer(self, request: Request) -> Client:
        """Who makes something, within limits. Raises Draining, Overloaded and RateLimited, too."""
        if self.gateway.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        client = await self.client(request)
        exchange = exchange_of(request)
        self.gateway.take_place(exchange)
        if exchange.key:
            exchange.headers += await self.gateway.quotas.admit(exchange.key)
        return client
