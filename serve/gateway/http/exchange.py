"""One request and its answer: what the layers know about it, and what logs and metrics keep."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.requests import Request

from everlearn.registry.tables import ApiKey
from serve.engines import NUMBER_HEADER, SALT_HEADER
from serve.gateway.http.failures import Describe, describe
from serve.gateway.limits.cost import NOTHING, Cost
from serve.gateway.routing.replica import Replica
from serve.tracing import Span

SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
UNKNOWN = "-"
MOST_TOKENS = 2**31 - 1


@dataclass(slots=True)
class Exchange:
    """One request and its answer."""

    id: str
    route: str = UNKNOWN
    model: str = UNKNOWN
    key: ApiKey | None = None
    replica: Replica | None = None
    status: int = 0
    error: str | None = None
    usage: dict[str, Any] | None = None
    started: float = field(default_factory=time.perf_counter)
    first_token_s: float | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    describe: Describe = describe
    on_end: list[Callable[[], None]] = field(default_factory=list)
    span: Span | None = None
    cost: Cost = NOTHING
    number: str = field(default_factory=lambda: uuid4().hex)

    def engine_headers(self) -> dict[str, str]:
        """The headers for the chosen engine. Another server is not told the key."""
        headers = {"x-request-id": self.id}
        if self.replica and self.replica.row.kind != "remote":
            headers[NUMBER_HEADER] = self.number
            if self.key:
                headers[SALT_HEADER] = self.key.id
        return headers | (self.span.headers() if self.span else {})

    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started

    def end(self) -> None:
        """Release everything that the request held, even if one release raises."""
        if self.on_end:
            try:
                self.on_end.pop()()
            finally:
                self.end()

    def tokens(self, kind: str) -> int:
        """The engine's count of `prompt_tokens` or `completion_tokens`; 0 where it gave none that is possible."""
        count = (self.usage or {}).get(kind)
        return count if isinstance(count, int) and 0 < count <= MOST_TOKENS else 0


def request_id(sent: bytes | None) -> str:
    """The client's id if it is safe to log and send back, else a new one."""
    return sent.decode() if sent and SANE_ID.fullmatch(sent) else f"req_{uuid4().hex}"


def exchange_of(request: Request) -> Exchange:
    """The exchange that the outermost layer made for this request."""
    exchange: Exchange = request.scope["everlearn.exchange"]
    return exchange
