"""Buckets refill evenly, and a key pays for tokens that were counted after the fact."""

import pytest

from everlearn.errors import RateLimited
from everlearn.registry.tables import ApiKey
from serve.gateway.limits.rate_limit import RateLimiter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def key(requests: int | None = None, tokens: int | None = None) -> ApiKey:
    return ApiKey(id="key-1", requests_per_minute=requests, tokens_per_minute=tokens)


async def test_requests_are_admitted_up_to_the_limit_and_again_when_time_has_passed() -> None:
    clock = Clock()
    quotas, limited = RateLimiter(clock=clock), key(requests=2)
    await quotas.admit(limited)
    await quotas.admit(limited)
    with pytest.raises(RateLimited) as caught:
        await quotas.admit(limited)
    assert caught.value.retry_after_s == pytest.approx(30)
    clock.now = 30
    await quotas.admit(limited)


async def test_a_long_answer_puts_its_key_into_debt() -> None:
    clock = Clock()
    quotas, limited = RateLimiter(clock=clock), key(tokens=60)
    await quotas.admit(limited)
    quotas.charge(limited, 120)
    with pytest.raises(RateLimited, match="tokens"):
        await quotas.admit(limited)
    clock.now = 60
    with pytest.raises(RateLimited):
        await quotas.admit(limited)
    clock.now = 61.5
    await quotas.admit(limited)


async def test_a_changed_limit_counts_from_now() -> None:
    quotas = RateLimiter(clock=Clock())
    await quotas.admit(key(requests=1))
    await quotas.admit(key(requests=5))


async def test_headers_say_what_is_left() -> None:
    quotas = RateLimiter(clock=Clock())
    headers = dict(await quotas.admit(key(requests=60, tokens=600)))
    assert headers[b"x-ratelimit-limit-requests"] == b"60"
    assert headers[b"x-ratelimit-remaining-requests"] == b"59"
    assert headers[b"x-ratelimit-reset-requests"] == b"1.000s"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"600"


async def test_a_key_without_limits_has_no_headers() -> None:
    assert await RateLimiter().admit(key()) == []
