"""Requests and tokens per minute of each key.

A bucket per key and kind refills continuously and may go below zero: the tokens of an answer are known only
after it, so a key pays its debt before its next request. In this process alone.
"""

import time
from collections.abc import Callable

from everlearn.database import ApiKey
from everlearn.errors import RateLimited

MINUTE_S = 60.0


class Bucket:
    """Holds at most `per_minute` units and gains them evenly over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    def level(self) -> float:
        """What is left now; negative is debt."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / MINUTE_S)
        self._at = now
        return self._level

    def take(self, units: float) -> None:
        """Spend, below zero if need be."""
        self._level = self.level() - units

    def wait_s(self, units: float) -> float:
        """Seconds until `units` are there."""
        return max(0.0, units - self.level()) * MINUTE_S / self.per_minute


class Quotas:
    """The buckets of all keys with limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def admit(self, key: ApiKey) -> list[tuple[bytes, bytes]]:
        """Count one request and return the `x-ratelimit-*` headers. Raises RateLimited when a limit is spent."""
        requests = self._bucket(key, "requests", key.requests_per_minute)
        tokens = self._bucket(key, "tokens", key.tokens_per_minute)
        for kind, bucket in (("requests", requests), ("tokens", tokens)):
            if bucket and (wait_s := bucket.wait_s(1)) > 0:
                raise RateLimited(
                    f"This key's limit of {bucket.per_minute} {kind} per minute is spent. "
                    f"Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                )
        if requests:
            requests.take(1)
        return self.headers(key)

    def headers(self, key: ApiKey) -> list[tuple[bytes, bytes]]:
        """OpenAI's header names; a reset is the time until the bucket is full."""
        headers = []
        for kind, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)):
            if bucket := self._bucket(key, kind, limit):
                full_s = bucket.wait_s(bucket.per_minute)
                for name, value in (
                    ("limit", str(bucket.per_minute)),
                    ("remaining", str(max(0, int(bucket.level())))),
                    ("reset", f"{full_s:.3f}s"),
                ):
                    headers.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
        return headers

    def charge(self, key: ApiKey, tokens: int) -> None:
        """Take the tokens of a finished answer."""
        if bucket := self._bucket(key, "tokens", key.tokens_per_minute):
            bucket.take(tokens)

    def _bucket(self, key: ApiKey, kind: str, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        bucket = self._buckets.get((key.id, kind))
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[key.id, kind] = Bucket(per_minute, self._clock)
        return bucket
