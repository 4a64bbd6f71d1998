"""Requests of a device: a server that is busy is asked again when it says so, and one that is too slow is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from everlearn.errors import Unavailable

TRIES = 5
BUSY = (429, 503)
PATIENCE_S = 300.0
"""How long a file may take however small it is, waiting for a busy server included."""
SLOWEST_BYTES_PER_S = 2048
"""The gateway breaks off slower readers as well."""
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
READ_BYTES = 256 << 10
TIMEOUT = urllib3.Timeout(connect=10, read=30)
RETRIES = urllib3.Retry(3, redirect=False, respect_retry_after_header=False)
HEADERS = {"accept-encoding": "identity", "user-agent": "everlearn"}


class Pace:
    """How much of a file came since when, over all tries."""

    def __init__(self, url: str) -> None:
        self.url, self.started, self.received = url, time.monotonic(), 0

    def refuse_slow(self, wait_s: float = 0.0) -> None:
        """Raises Unavailable where the file took, or would take after ``wait_s``, longer than its bytes may."""
        allowed = PATIENCE_S + self.received / SLOWEST_BYTES_PER_S
        if time.monotonic() - self.started + wait_s > allowed:
            raise Unavailable(
                f"{self.url} sends less than {SLOWEST_BYTES_PER_S} bytes per second. What came is kept; update again to go on"
            )


class Transport:
    """HTTP, for one update."""

    def __init__(self) -> None:
        self.http = urllib3.PoolManager(retries=RETRIES, timeout=TIMEOUT)

    def get(self, pace: Pace, headers: dict[str, str] | None = None) -> BaseHTTPResponse:
        """What ``pace.url`` answers, its body not read yet. Where it is busy, it is asked again after Retry-After.

        Raises urllib3's HTTPError, and Unavailable where it stays busy.
        """
        for tried in range(TRIES):
            answer = self.http.request(
                "GET", pace.url, headers=HEADERS | (headers or {}), preload_content=False
            )
            if answer.status not in BUSY:
                return answer
            answer.close()
            if tried < TRIES - 1:
                wait_s = asked_wait_s(answer, tried)
                pace.refuse_slow(wait_s)
                time.sleep(wait_s)
        raise Unavailable(f"{pace.url} is busy (status {answer.status}): update again later")

    def pieces(self, answer: BaseHTTPResponse, pace: Pace) -> Iterator[bytes]:
        """The body, as it comes. Raises urllib3's HTTPError, and Unavailable where it comes too slowly."""
        try:
            while piece := answer.read1(READ_BYTES):
                pace.received += len(piece)
                yield piece
                pace.refuse_slow()
        finally:
            answer.close()


def asked_wait_s(answer: BaseHTTPResponse, tried: int) -> float:
    """Seconds until the next try: those of Retry-After, where it is a number, else twice as many each time."""
    said = answer.headers.get("retry-after", "").strip()
    wait_s = float(said) if said.isdecimal() and said.isascii() else FIRST_WAIT_S * 2**tried
    return min(wait_s, MOST_WAIT_S)


class MetadataFetcher(FetcherInterface):
    """The transport, for TUF's client."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def _fetch(self, url: str) -> Iterator[bytes]:
        pace = Pace(url)
        with told_to_tuf(url):
            answer = self.transport.get(pace)
        if answer.status != 200:
            answer.close()
            raise DownloadHTTPError(f"{url} answers {answer.status}", answer.status)
        return self._pieces(answer, pace)

    def _pieces(self, answer: BaseHTTPResponse, pace: Pace) -> Iterator[bytes]:
        with told_to_tuf(pace.url):
            yield from self.transport.pieces(answer, pace)


@contextmanager
def told_to_tuf(url: str) -> Iterator[None]:
    """Raises DownloadError, which says what went wrong, for whatever did."""
    try:
        yield
    except Unavailable as error:
        raise DownloadError(error.message) from None
    except HTTPError as error:
        raise DownloadError(f"{url}: {type(error).__name__}: {error}") from None
