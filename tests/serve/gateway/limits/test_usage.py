"""What keys use is counted by every gateway into the same rows, and a month's budget holds."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI, RateLimitError
from sqlalchemy import text

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key
from everlearn.registry.usage import Used, sum_usage
from everlearn.settings import Settings
from serve.gateway.http.exchange import Exchange
from serve.gateway.http.failures import BudgetSpent
from serve.gateway.limits.meter import Meter
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until
from tests.support.serve.scripted_engine import Connection, chat_chunk, well

ALWAYS = ("2000-01-01", "2999-12-31")
TOKENS = 10
"""What the scripted engine counts for an answer: 7 and 3."""


@pytest.fixture(scope="module")
def metered(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway()
    create_key(gateway.db, "main")
    gateway.add_engine("m")
    gateway.add_engine("e", task="embed")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")
    return gateway


def ask(
    gateway: RunningGateway, secret: str, path: str = "/v1/chat/completions", **fields: Any
) -> httpx2.Response:
    body = chat_body("m") | fields
    return gateway.client.post(path, json=body, headers={"authorization": f"Bearer {secret}"})


def used(gateway: RunningGateway, key_id: str) -> Used | None:
    found = sum_usage(gateway.db, *ALWAYS)
    return next((one for one in found if one.what == key_id), None)


def settled(gateway: RunningGateway, key_id: str, requests: int) -> Used:
    wait_until(lambda: (one := used(gateway, key_id)) is not None and one.requests >= requests, "it is added")
    found = used(gateway, key_id)
    assert found
    return found


def test_every_kind_of_answer_is_counted_for_its_key(metered: RunningGateway) -> None:
    secret, key = create_key(metered.db, "counted")
    ask(metered, secret)
    ask(metered, secret, stream=True)
    metered.client.post(
        "/v1/responses", json={"model": "m", "input": "x"}, headers={"authorization": f"Bearer {secret}"}
    )
    metered.client.post(
        "/v1/embeddings", json={"model": "e", "input": "x"}, headers={"authorization": f"Bearer {secret}"}
    )
    ask(metered, secret, model="nope")
    ask(metered, secret, nonsense=1)
    found = settled(metered, key.id, 6)
    assert (found.name, found.requests, found.failed) == ("counted", 6, 2)
    assert (found.prompt_tokens, found.completion_tokens) == (4 * 7, 4 * 3)
    models = {one.what for one in sum_usage(metered.db, *ALWAYS, by="model")}
    assert {"m", "e", "-"} == models


def test_a_broken_stream_is_counted_as_failed_with_what_was_sent(metered: RunningGateway) -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        for _ in range(5):
            await connection.event(chat_chunk({"content": "x"}))
        connection.reset()

    secret, key = create_key(metered.db, "broken")
    metered.engines["m-1"].script = die
    ask(metered, secret, stream=True)
    metered.engines["m-1"].script = well
    found = settled(metered, key.id, 1)
    assert (found.failed, found.completion_tokens) == (1, 5)


def test_a_spent_budget_is_told_as_openai_tells_it_and_not_tried_again(metered: RunningGateway) -> None:
    secret, _ = create_key(metered.db, "small", tokens_per_month=2 * TOKENS)
    other, _ = create_key(metered.db, "other", tokens_per_month=10**12)
    assert [ask(metered, secret).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(metered, secret)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert "budget of 20 tokens per month" in error["message"]
    assert f"{datetime.now(UTC):%Y}" in error["message"] or "-01-01" in error["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86400 + 1
    client = OpenAI(base_url=f"{metered.url}/v1", api_key=secret, max_retries=3)
    name = 'everlearn_requests_total{model="m",route="/v1/chat/completions",status="429"}'
    before = metered.metric(name)
    with pytest.raises(RateLimitError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "insufficient_quota"
    assert metered.metric(name) == before + 1
    assert ask(metered, other).status_code == 200


def test_two_gateways_fill_the_same_rows_and_keep_the_same_budget(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    one = start_gateway()
    secret, key = create_key(one.db, "shared", tokens_per_month=6 * TOKENS)
    one.add_engine("m")
    two = RunningGateway(one.settings.home)
    try:
        wait_until(lambda: two.has("m"), "the second sees the engine")
        for gateway in (one, two, one, two):
            assert ask(gateway, secret).status_code == 200
        found = settled(one, key.id, 4)
        assert (found.requests, found.prompt_tokens + found.completion_tokens) == (4, 4 * TOKENS)
        assert ask(one, secret).status_code == ask(one, secret).status_code == 200
        wait_until(lambda: ask(two, secret).status_code == 429, "the second hears of what the first counted")
    finally:
        assert two.stop() == 0


def test_what_was_counted_is_in_the_database_when_it_has_ended(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    secret, key = create_key(gateway.db, "last", tokens_per_month=3 * TOKENS)
    gateway.add_engine("m")
    for _ in range(3):
        ask(gateway, secret)
    assert gateway.stop() == 0
    found = used(gateway, key.id)
    assert found and found.requests == 3
    again = RunningGateway(gateway.settings.home)
    try:
        assert ask(again, secret).json()["error"]["code"] == "insufficient_quota", (
            "known from the first request on"
        )
    finally:
        again.stop()


def test_while_the_database_is_away_budgets_go_by_the_last_sums(metered: RunningGateway) -> None:
    secret, key = create_key(metered.db, "away", tokens_per_month=3 * TOKENS)
    assert ask(metered, secret).status_code == 200
    settled(metered, key.id, 1)
    with metered.db.begin() as connection:
        connection.execute(text('ALTER TABLE "usage" RENAME TO gone'))
    wait_until(lambda: "usage_unwritten" in metered.log(), "it notices")
    assert [ask(metered, secret).status_code for _ in range(3)] == [200, 200, 429]
    with metered.db.begin() as connection:
        connection.execute(text('ALTER TABLE gone RENAME TO "usage"'))
    found = settled(metered, key.id, 4)
    assert (found.requests, found.failed, found.prompt_tokens) == (4, 1, 21)


def test_counts_that_cannot_be_added_wait_and_are_added_once(tmp_path: Path) -> None:
    db = open_database(Settings(home=tmp_path))
    meter = Meter(db)

    async def run() -> None:
        for away in (False, True, True, False, False):
            if away:
                with db.begin() as connection:
                    connection.execute(text('ALTER TABLE "usage" RENAME TO gone'))
            meter.count(Exchange("r", model="m", usage={"prompt_tokens": 7}))
            await meter.flush()
            if away:
                with db.begin() as connection:
                    connection.execute(text('ALTER TABLE gone RENAME TO "usage"'))

    asyncio.run(run())
    (found,) = sum_usage(db, *ALWAYS)
    assert (found.requests, found.prompt_tokens) == (5, 35)


def test_an_answer_of_another_model_is_counted_for_that_one(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(fallbacks='[{"model": "gone", "to": ["m"]}]')
    gateway.add_engine("m")
    assert gateway.chat("gone").status_code == 200
    wait_until(lambda: bool(sum_usage(gateway.db, *ALWAYS)), "it is added")
    assert [one.what for one in sum_usage(gateway.db, *ALWAYS, by="model")] == ["m"]


def test_a_new_month_gives_a_new_budget(tmp_path: Path) -> None:
    db = open_database(Settings(home=tmp_path))
    _, key = create_key(db, "monthly", tokens_per_month=TOKENS)
    now = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()
    meter = Meter(db, lambda: now)
    usage = {"prompt_tokens": 7, "completion_tokens": 3}

    async def run() -> None:
        nonlocal now
        for month in ("2026-12-01", "2027-01-01"):
            meter.admit(key)
            meter.count(Exchange("r", key=key, model="m", usage=usage))
            for written in (False, True):
                if written:
                    await meter.flush()
                with pytest.raises(BudgetSpent, match=f"ends on {month}") as caught:
                    meter.admit(key)
                left_s = datetime.fromisoformat(f"{month}T00:00:00+00:00").timestamp() - now
                assert caught.value.retry_after_s == pytest.approx(left_s)
            now += left_s
        meter.admit(key)

    asyncio.run(run())
    assert sum_usage(db, *ALWAYS)[0].requests == 2
