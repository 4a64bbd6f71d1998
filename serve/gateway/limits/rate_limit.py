"""Limits per key: requests per minute, tokens per minute, and requests in flight.

A bucket per key and kind refills continuously and may go below zero. A request reserves the tokens that it may cost,
at most a whole bucket; at its end the actual cost replaces the reservation. So concurrent requests cannot spend the
same tokens, and a key pays its debt before its next request. A bucket is one number: the time at which it will be full
again (the generic cell rate algorithm, ATM Forum 1996). Several gateways keep the buckets in Redis; each also keeps
its own, for when Redis is unavailable.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from everlearn.errors import RateLimited
from everlearn.registry.tables import ApiKey

if TYPE_CHECKING:
    from serve.gateway.limits.shared import Shared

MINUTE_S = 60.0

TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local behind, admitted = {}, 1
for i, key in ipairs(KEYS) do
    local unit_s, most, forced = 60 / ARGV[3 * i - 2], ARGV[3 * i - 2] + 0, ARGV[3 * i] == '1'
    behind[i] = math.max(0, (redis.call('GET', key) or 0) - now)
    if not forced and behind[i] > (most - 1) * unit_s + 1e-6 then admitted = 0 end
end
local told = {admitted}
for i, key in ipairs(KEYS) do
    local took_s = ARGV[3 * i - 1] * 60 / ARGV[3 * i - 2]
    if admitted == 1 and took_s ~= 0 then
        behind[i] = math.max(0, behind[i] + took_s)
        redis.call('SET', key, string.format('%.6f', now + behind[i]), 'PX', math.ceil(behind[i] * 1000) + 1000)
    end
    told[i + 1] = string.format('%.6f', behind[i])
end
return told
"""
"""KEYS: buckets. ARGV per bucket: units per minute, units to take (negative: give back), 1 to take them even if none are left.

All or nothing; returns whether it took, and for each bucket the seconds until it is full.
"""


class Spending(NamedTuple):
    """Take `units` from a key's bucket of `kind`; `forced`: even below zero."""

    key: str
    kind: str
    per_minute: int
    units: int
    forced: bool = False

    @property
    def bucket(self) -> str:
        # A changed limit is another bucket: it counts from now.
        return f"everlearn:limit:{self.key}:{self.kind}:{self.per_minute}"

    def level(self, behind_s: float) -> float:
        """What is left in a bucket that will be full in `behind_s` seconds; negative is debt."""
        return self.per_minute - behind_s * self.per_minute / MINUTE_S

    def wait_s(self, behind_s: float) -> float:
        """Seconds until there is one unit."""
        return max(0.0, behind_s - (self.per_minute - 1) * MINUTE_S / self.per_minute)


class RateLimiter:
    """The buckets of all keys with limits."""

    def __init__(self, shared: "Shared | None" = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._script = shared.redis.register_script(TAKE) if shared else None
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._charging: set[asyncio.Task[object]] = set()
        self.in_flight: Counter[str] = Counter()
        """Requests at this gateway by key; other gateways report theirs four times per second."""

    def enter(self, key: ApiKey, most: int) -> None:
        """Count a request of the key in. Raises RateLimited if the key has as many in flight as it may."""
        most = key.requests_in_flight or most
        elsewhere = self._shared.in_flight(key.id) if self._shared else 0
        if self.in_flight[key.id] + elsewhere >= most:
            raise RateLimited(
                f"This key has {most} requests in flight, as many as it may have at once. Wait for one to end.",
                retry_after_s=1,
            )
        self.in_flight[key.id] += 1

    def leave(self, key: ApiKey) -> None:
        """Count a request of the key out."""
        self.in_flight[key.id] -= 1
        if not self.in_flight[key.id]:
            del self.in_flight[key.id]

    async def admit(self, key: ApiKey, tokens: int = 0) -> list[tuple[bytes, bytes]]:
        """Count one request and reserve what `reservable` allows of the `tokens` that it may cost.

        Returns the `x-ratelimit-*` headers. Raises RateLimited if a limit is spent.
        """
        spendings = [
            Spending(key.id, kind, per_minute, units)
            for kind, per_minute, units in (
                ("requests", key.requests_per_minute, 1),
                ("tokens", key.tokens_per_minute, reservable(key, tokens)),
            )
            if per_minute is not None
        ]
        if not spendings:
            return []
        admitted, behind_s = await self._take(spendings)
        if not admitted:
            each = (
                (spending, spending.wait_s(behind))
                for spending, behind in zip(spendings, behind_s, strict=True)
            )
            worst, wait_s = max(each, key=lambda pair: pair[1])
            held = ", or held by its requests that run" if worst.kind == "tokens" else ""
            raise RateLimited(
                f"This key's limit of {worst.per_minute} {worst.kind} per minute is spent{held}. "
                f"Try again in {wait_s:.1f} s.",
                retry_after_s=wait_s,
            )
        return [header for pair in zip(spendings, behind_s, strict=True) for header in _headers(*pair)]

    def charge(self, key: ApiKey, tokens: int) -> None:
        """Take the tokens of a finished answer beyond those reserved; a negative number gives some back."""
        if key.tokens_per_minute is None or not tokens:
            return
        spendings = [Spending(key.id, "tokens", key.tokens_per_minute, tokens, forced=True)]
        if self._shared is None:
            self._take_here(spendings)
            return
        charging = asyncio.get_running_loop().create_task(self._take(spendings))
        self._charging.add(charging)
        charging.add_done_callback(self._charging.discard)

    async def _take(self, spendings: Sequence[Spending]) -> tuple[bool, list[float]]:
        """Whether all units could be taken, and for each bucket the seconds until it is full."""
        here = self._take_here(spendings)
        if not (self._shared and self._script):
            return here
        script = self._script
        arguments = [value for s in spendings for value in (s.per_minute, s.units, int(s.forced))]
        told = await self._shared.ask(lambda: script([s.bucket for s in spendings], arguments))
        return here if told is None else (bool(told[0]), [float(behind) for behind in told[1:]])

    def _take_here(self, spendings: Sequence[Spending]) -> tuple[bool, list[float]]:
        now = self._clock()
        behind_s = [max(0.0, self._full_at.get(s.bucket, 0.0) - now) for s in spendings]
        admitted = all(
            s.forced or s.wait_s(behind) <= 1e-6 for s, behind in zip(spendings, behind_s, strict=True)
        )
        for i, s in enumerate(spendings):
            if admitted and s.units:
                behind_s[i] = max(0.0, behind_s[i] + s.units * MINUTE_S / s.per_minute)
                self._full_at[s.bucket] = now + behind_s[i]
        return admitted, behind_s


def reservable(key: ApiKey, tokens: int) -> int:
    """At most a full bucket, so that the reservations of a gateway that dies block the key for no longer than a minute."""
    return min(tokens, key.tokens_per_minute or 0)


def _headers(spending: Spending, behind_s: float) -> list[tuple[bytes, bytes]]:
    """OpenAI's header names; a reset is the time until the bucket is full. Reserved tokens are not spent yet."""
    if spending.kind == "tokens":
        behind_s = max(0.0, behind_s - spending.units * MINUTE_S / spending.per_minute)
    values = {
        "limit": str(spending.per_minute),
        "remaining": str(max(0, int(spending.level(behind_s) + 1e-6))),
        "reset": f"{behind_s:.3f}s",
    }
    return [
        (f"x-ratelimit-{name}-{spending.kind}".encode(), value.encode()) for name, value in values.items()
    ]
