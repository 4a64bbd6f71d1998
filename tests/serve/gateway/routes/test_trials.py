"""A gateway with versions on trial: who answers which requests, who gets copies, and what is counted."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert

from everlearn.registry.database import write
from everlearn.registry.records import put_alias
from everlearn.registry.tables import ModelRow
from tests.serve.gateway.conftest import RunningGateway, wait_until
from tests.support.serve.scripted_engine import Connection, well

SEEN_S = 0.5


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway()
    with write(gateway.db) as connection:
        connection.execute(insert(ModelRow).values(name="m", last_version=3))
    gateway.add_engine("m", 1)
    gateway.add_engine("m", 2, id="canary", role="canary")
    gateway.add_engine("m", 3, id="shadow", role="shadow")
    return gateway


@pytest.fixture(autouse=True)
def calm(gateway: RunningGateway) -> None:
    share(gateway, canary=0, shadow=0)
    for engine in gateway.engines.values():
        engine.script = well
        engine.received.clear()


def share(gateway: RunningGateway, **shares: float) -> None:
    with write(gateway.db) as connection:
        for alias, part in shares.items():
            put_alias(connection, "m", alias, {"canary": 2, "shadow": 3}[alias], part)
    time.sleep(SEEN_S)


def counted(gateway: RunningGateway, version: int, outcome: str) -> float:
    role = {1: "champion", 2: "canary", 3: "shadow"}[version]
    labels = f'model="m",outcome="{outcome}",role="{role}",version="{version}"'
    return gateway.metric(f"everlearn_version_requests_total{{{labels}}}")


def versions(gateway: RunningGateway, count: int, **fields: Any) -> Counter[str]:
    answers = [gateway.chat(**fields) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return Counter(answer.headers["x-everlearn-version"] for answer in answers)


def test_a_canary_answers_its_share_and_each_answer_names_its_version(gateway: RunningGateway) -> None:
    assert versions(gateway, 20) == {"m@1": 20}
    share(gateway, canary=0.25)
    before = counted(gateway, 2, "answered")
    seen = versions(gateway, 200, stream=True)
    assert 25 <= seen["m@2"] <= 80 and seen["m@1"] == 200 - seen["m@2"]  # beyond is one run in 10,000
    assert counted(gateway, 2, "answered") == before + seen["m@2"]
    share(gateway, canary=1)
    assert versions(gateway, 20) == {"m@2": 20}


def test_a_version_on_trial_is_asked_by_its_number_and_listed_nowhere(gateway: RunningGateway) -> None:
    assert versions(gateway, 3, model="m@2") == {"m@2": 3}
    assert versions(gateway, 3, model="m@3") == {"m@3": 3}
    assert [model["version"] for model in gateway.client.get("/v1/models").json()["data"]] == [1]
    assert gateway.metric('everlearn_replicas{model="m"') == 1


def test_a_canary_that_breaks_costs_no_answer(gateway: RunningGateway) -> None:
    async def breaks(connection: Connection) -> None:
        connection.reset()

    gateway.engines["canary"].script = breaks
    share(gateway, canary=1)
    before = counted(gateway, 2, "failed")
    assert versions(gateway, 20) == {"m@1": 20}
    failed = counted(gateway, 2, "failed") - before
    assert 3 <= failed < 20, "after three failures it is left alone for a while"


def test_a_shadow_gets_copies_whose_answers_nobody_waits_for(gateway: RunningGateway) -> None:
    async def slow(connection: Connection) -> None:
        await asyncio.sleep(1)
        await well(connection)

    shadow = gateway.engines["shadow"]
    shadow.script = slow
    share(gateway, shadow=1)
    before = counted(gateway, 3, "answered")
    assert versions(gateway, 5, stream=True, text="copied") == {"m@1": 5}
    embedded = gateway.client.post("/v1/embeddings", json={"model": "m", "input": "x"})
    assert embedded.status_code == 400  # a refused request is not copied
    wait_until(lambda: counted(gateway, 3, "answered") == before + 5, "the copies are answered")
    originals = gateway.engines["m-1"].received
    assert [copy.body for copy in shadow.received] == [
        original.body | {"service_tier": "flex"} for original in originals
    ]
    ids = [original.headers["x-request-id"] for original in originals]
    assert [copy.headers["x-request-id"] for copy in shadow.received] == [f"{id}-shadow" for id in ids]
    assert gateway.metric('everlearn_tokens_total{kind="completion",model="m"') == 3 * gateway.metric(
        'everlearn_requests_total{model="m",route="/v1/chat/completions",status="200"'
    ), "copies are on nobody's bill"


def test_a_shadow_that_fails_or_hangs_shows_in_its_own_count_alone(gateway: RunningGateway) -> None:
    async def fails(connection: Connection) -> None:
        await connection.json({"error": {"message": "broken", "type": "server_error"}}, "500 Oops")

    async def hangs(connection: Connection) -> None:
        await asyncio.sleep(3600)

    failed, dropped = counted(gateway, 3, "failed"), counted(gateway, 3, "dropped")
    errors = gateway.metric("everlearn_errors_total")
    gateway.engines["shadow"].script = fails
    share(gateway, shadow=1)
    assert versions(gateway, 2) == {"m@1": 2}
    wait_until(lambda: counted(gateway, 3, "failed") == failed + 2, "both copies fail")
    gateway.engines["shadow"].script = hangs
    assert versions(gateway, 20) == {"m@1": 20}
    assert counted(gateway, 3, "dropped") == dropped + 4, "at most 16 wait"
    assert gateway.metric("everlearn_errors_total") == errors
    assert gateway.stop() == 0  # the last test of this gateway: it does not wait for copies
