"""One engine as a gateway sees it: its address and connections, its recent failures, and its cached prefixes."""

import os
import time
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import (
    BaseConnector,
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    UnixConnector,
)
from yarl import URL

from everlearn.settings import Remote
from serve.engines import USED
from serve.engines.programs import ENGINES
from serve.gateway.routing.prefixes import Prefixes
from serve.replicas import ReadyReplica, unix_path

CONNECT_TIMEOUT_S = 5
PROBE_TIMEOUT_S = 5
USED_TIMEOUT_S = 1
KEEP_ALIVE_S = 2  # shorter than any engine's, so that a request never meets a connection being closed
FAILURES_TO_EJECT = 3
EJECTED_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)

log = structlog.get_logger()


class Replica:
    """One engine, its connections, and its recent failures."""

    def __init__(
        self, row: ReadyReplica, base: URL, connector: BaseConnector, *, name: str = "", serves_as: str = "",
        headers: Mapping[str, str] | None = None, through_proxy: bool = False,
    ) -> None:  # fmt: skip
        self.row = row
        self.name = name or f"{row.model}@{row.version}"
        self._away = ""
        self.in_flight = 0
        self.last_used = 0.0
        self.prefixes = Prefixes()
        self._base = base
        self.serves_as = serves_as
        """The model's name at a remote server; empty for engines of this installation, which accept any name."""
        self._failures = 0
        self._ejections = 0
        self._ejected_until = 0.0
        self._probing = False
        self.session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            trust_env=through_proxy,
            headers=headers,
        )

    @classmethod
    def local(cls, row: ReadyReplica) -> "Replica":
        """An engine of this installation, from its row."""
        if socket := unix_path(row.url):
            return cls(
                row,
                URL("http://engine"),
                UnixConnector(str(socket), limit=0, keepalive_timeout=KEEP_ALIVE_S),
            )
        return cls(row, URL(row.url), TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S))

    @classmethod
    def remote(cls, remote: Remote) -> "Replica":
        """A model of a remote server, which is not `here` before the first successful `probe`."""
        base = URL(remote.url.rstrip("/").removesuffix("/v1"))
        key = os.environ.get(remote.key_variable, "") if remote.key_variable else ""
        row = ReadyReplica(
            id=f"{remote.model} at {base}", model=remote.model, version=0, digest="", kind="remote",
            task=remote.task, url=str(base), pid=None, context=remote.context, started_at=time.time(),
        )  # fmt: skip
        replica = cls(
            row, base, TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=KEEP_ALIVE_S),
            name=f"{remote.model}@{base.host}:{base.port}", serves_as=remote.serves_as or remote.model,
            headers={"authorization": f"Bearer {key}"} if key else None, through_proxy=True,
        )  # fmt: skip
        replica._away = "not asked yet"
        return replica

    @property
    def follows_grammars(self) -> bool:
        """Whether the engine cannot generate what a schema forbids: true for those of this installation."""
        return self.row.kind != "remote"

    @property
    def here(self) -> bool:
        """Whether the last probe succeeded; engines of this installation are not probed, but have a row."""
        return not self._away

    @property
    def away(self) -> str:
        """Why a remote server cannot be used; empty while it can."""
        return self._away

    async def probe(self) -> None:
        """Ask a remote server for its models, to see whether it is reachable and accepts our key."""
        reason = ""
        try:
            timeout = ClientTimeout(total=PROBE_TIMEOUT_S)
            async with self.session.get(self.address("/v1/models"), timeout=timeout) as answer:
                if answer.status != 200:
                    reason = f"status {answer.status}"
        except (ClientError, OSError, TimeoutError) as error:
            reason = type(error).__name__
        if reason != self._away:
            (log.warning if reason else log.info)("remote", replica=self.name, away=reason or None)
        self._away = reason

    async def used(self, number: str) -> dict[str, Any] | None:
        """The usage of a cancelled request, as the engine counted it; None where it does not tell."""
        engine = ENGINES.get(self.row.kind)
        if engine is None or not engine.reports_usage:
            return None
        try:
            timeout = ClientTimeout(total=USED_TIMEOUT_S)
            async with self.session.get(self.address(USED + number), timeout=timeout) as answer:
                return await answer.json() if answer.status == 200 else None
        except (
            ClientError,
            OSError,
            TimeoutError,
            ValueError,
            RuntimeError,
        ):  # the last: an engine that has left
            return None

    def address(self, path: str) -> URL:
        """Where this engine answers `path`, which begins with a slash."""
        return self._base.joinpath(path[1:], encoded=True)

    @property
    def ejected(self) -> bool:
        """Whether it failed too often and no request has succeeded since."""
        return self._ejected_until > 0

    @property
    def ejected_for_s(self) -> float:
        """Seconds until a probe may try this replica again."""
        return max(0.0, self._ejected_until - time.monotonic())

    def takes_requests(self) -> bool:
        """Whether it is healthy, or was ejected long enough ago that one request may probe it."""
        return not self.ejected or (self.ejected_for_s == 0 and not self._probing)

    def start(self) -> None:
        """Count a request in; on an ejected replica it is the probe."""
        self.in_flight += 1
        self.last_used = time.monotonic()
        self._probing = self.ejected

    def finish(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        self._probing = False

    def began(self) -> None:
        """An answer has begun: requests may come again, although that answer may still fail."""
        self._ejected_until = 0.0

    def succeeded(self) -> None:
        """An answer is complete: reset the count of failures."""
        self._failures = self._ejections = 0
        self._ejected_until = 0.0

    def failed(self, at_once: bool = False) -> None:
        """The engine broke, refused the connection (`at_once`) or fell silent.

        Requests that were in flight when it was ejected do not count again.
        """
        if self.ejected_for_s > 0 and not self._probing:
            return
        self._failures += 1
        if at_once or self.ejected or self._failures >= FAILURES_TO_EJECT:
            pause_s = EJECTED_S[min(self._ejections, len(EJECTED_S) - 1)]
            self._ejections += 1
            self._ejected_until = time.monotonic() + pause_s
            log.warning("replica_ejected", replica=self.name, id=self.row.id, seconds=pause_s)
