"""One try over HTTP: a signed POST, and what came back."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING

from continual.webhooks.signature import signed_headers

if TYPE_CHECKING:
    import ssl

    import httpx

TIMEOUT_S = 10.0
"""For the whole try, from the name's look-up to the answer."""
MAX_ANSWER_BYTES = 4096
MAX_FAULT_CHARS = 300


@dataclass(frozen=True)
class Answer:
    """What a receiver answered; ``status`` None: nothing, for the reason in ``fault``. ``text``: its beginning."""

    status: int | None
    text: str = ""
    retry_after_s: float | None = None
    fault: str = ""

    @property
    def is_good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def summary(self) -> str:
        """In a few words, without the text."""
        if self.status is None:
            return self.fault
        return f"HTTP {self.status}{' (redirects are not followed)' if 300 <= self.status < 400 else ''}"


async def send(url: str, secret: str, event_id: str, body: bytes) -> Answer:
    """Signs ``body`` as of now and posts it, directly: through no proxy, with no cookies, following no redirect."""
    import httpx

    headers = signed_headers(secret, event_id, int(time.time()), body) | {
        "content-type": "application/json",
        "user-agent": "everlearn",
        "accept-encoding": "identity",
        "connection": "close",
    }
    answer = Answer(None, fault=f"no answer within {TIMEOUT_S:g} s")
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(trust_env=False, verify=_trust(), timeout=None) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            wait_s = _retry_after_s(response.headers.get("retry-after", ""))
            answer = Answer(response.status_code, retry_after_s=wait_s)
            answer = replace(answer, text=await _beginning(response))
    except TimeoutError:
        pass  # of an answer whose body was too slow, the status has come
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        if answer.status is None:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return Answer(None, fault=said[:MAX_FAULT_CHARS])
    return answer


@cache
def _trust() -> ssl.SSLContext:
    """certifi's authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR name."""
    import httpx

    return httpx.create_ssl_context()


async def _beginning(response: httpx.Response) -> str:
    """The first few KiB of an answer, as it came; the rest is not read."""
    read = b""
    async for chunk in response.aiter_raw():
        read += chunk
        if len(read) >= MAX_ANSWER_BYTES:
            break
    return read[:MAX_ANSWER_BYTES].decode(errors="replace")


def _retry_after_s(header: str) -> float | None:
    """Seconds of a Retry-After header, which has them or a date."""
    if re.fullmatch(r"[0-9]{1,9}", header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
