"""Reading a request body no further than allowed."""

import asyncio

from starlette.requests import Request

from serve.gateway.failures import SlowBody, TooLarge, UnsupportedMediaType

BODY_TIMEOUT_S = 30.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
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
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise too_large
    except TimeoutError:
        raise SlowBody(f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from None
    return bytes(body)
