"""Reads a request body within limits of size and time."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from serve.gateway.http.failures import SlowBody, TooLarge, UnsupportedMediaType

LEAST_BYTES_PER_S = 64 * 1024


async def chunks(request: Request, patience_s: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises SlowBody.

    It has `patience_s` seconds, and one more for each `LEAST_BYTES_PER_S` received; no pause may be longer than
    `patience_s`. So a long body may take its time, and no client can hold a connection with a trickle.
    """
    clock = asyncio.get_running_loop().time
    end, came, stream = clock() + patience_s, 0, request.stream()
    while True:
        try:
            async with asyncio.timeout_at(min(end + came / LEAST_BYTES_PER_S, clock() + patience_s)):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise SlowBody(
                f"The request body came too slowly: {came} bytes so far. Send it within {patience_s:g} s, "
                f"or at {LEAST_BYTES_PER_S // 1024} KiB/s."
            ) from None
        if chunk is None:
            return
        came += len(chunk)
        yield chunk


async def read_body(request: Request, limit_bytes: int, patience_s: float) -> bytes:
    """The whole body. Raises UnsupportedMediaType, TooLarge before buffering more than the limit, SlowBody."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted.", param="content-encoding")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(
            "Send the body with 'Content-Type: application/json'.", param="content-type"
        )
    too_large = TooLarge(f"The request body is longer than {limit_bytes} bytes.")
    if int(request.headers.get("content-length", "0")) > limit_bytes:
        raise too_large
    body = bytearray()
    async for chunk in chunks(request, patience_s):
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)
