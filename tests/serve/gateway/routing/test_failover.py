"""Failover: more than one replica, and none."""

import asyncio
import itertools
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import update

from everlearn.registry.database import write
from everlearn.registry.tables import ReplicaRow
from serve.gateway.routing.router import RETRY_RESERVE, RETRY_SHARE, RetryBudget
from serve.replicas import heartbeat, set_state, withdraw
from tests.serve.gateway.conftest import RunningGateway, chat_body, sse, wait_until
from tests.support.serve.scripted_engine import Connection, ScriptedEngine, well


@pytest.fixture(scope="module")
def pair(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway(first_token_timeout_s=1)
    gateway.add_engine("m", id="one")
    gateway.add_engine("m", id="two")
    return gateway


@pytest.fixture
def engines(pair: RunningGateway) -> list[ScriptedEngine]:
    """Both engines behaving well and trusted."""
    for engine in pair.engines.values():
        engine.script = well

    def both_ready() -> bool:
        pair.chat()
        return pair.metric('everlearn_replicas{model="m",state="ejected"}') == 0

    wait_until(both_ready, "both engines are trusted")
    for engine in pair.engines.values():
        engine.received.clear()
    return list(pair.engines.values())


async def die(connection: Connection) -> None:
    connection.reset()


async def die_after_headers(connection: Connection) -> None:
    await connection.head()
    connection.reset()


@pytest.mark.parametrize("death", [die, die_after_headers])
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_before_its_first_byte_is_replaced_by_another(
    pair: RunningGateway, engines: list[ScriptedEngine], death: Callable, stream: bool
) -> None:
    engines[0].script = death
    responses = [pair.chat(stream=stream) for _ in range(4)]
    assert {r.status_code for r in responses} == {200}
    assert len(engines[0].received) >= 1
    retried = [r for r in responses if r.headers.get("x-everlearn-retries") == "1"]
    assert len(retried) == len(engines[0].received)


def test_a_refused_connection_is_retried_and_the_replica_left_alone_for_a_while(
    pair: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    engines[0].refuse()
    time.sleep(2.1)  # idle connections to it end
    try:
        assert {pair.chat().status_code for _ in range(6)} == {200}
        assert (
            'everlearn_replicas{model="m",state="ejected"} 1.0'
            in (time.sleep(0.4), pair.client.get("/metrics").text)[1]
        )
    finally:
        engines[0].listen()


def test_nothing_is_sent_twice_once_a_byte_has_come(
    pair: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    async def half(connection: Connection) -> None:
        await connection.head()
        await connection.delta("once ")
        connection.reset()

    for engine in engines:
        engine.script = half
    events = sse(pair.chat(stream=True).text)
    assert [set(e) & {"error", "choices"} for e in events] == [{"choices"}, {"error"}]
    assert sum(len(engine.received) for engine in engines) == 1


def test_a_full_engine_hands_over_to_another_and_two_full_ones_answer_429(
    pair: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    async def full(connection: Connection) -> None:
        await connection.json({"error": {"message": "full"}}, "429 Too Many Requests")

    engines[0].script = full
    assert {pair.chat().status_code for _ in range(3)} == {200}
    engines[1].script = full
    response = pair.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


def test_the_least_busy_replica_is_chosen(pair: RunningGateway, engines: list[ScriptedEngine]) -> None:
    async def slowly(connection: Connection) -> None:
        await asyncio.sleep(0.3)
        await well(connection)

    for engine in engines:
        engine.script = slowly

    async def run() -> None:
        async with httpx2.AsyncClient(base_url=pair.url, timeout=20, trust_env=False) as client:
            await asyncio.gather(*(client.post("/v1/chat/completions", json=chat_body()) for _ in range(10)))

    asyncio.run(run())
    assert [len(engine.received) for engine in engines] == [5, 5]


def test_an_ejected_replica_gets_one_probe_and_then_its_share(
    pair: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    engines[0].script = die
    for _ in range(12):
        assert pair.chat().status_code == 200
    assert len(engines[0].received) == 3  # then it is left alone
    engines[0].script = well
    time.sleep(1.1)
    for _ in range(6):
        assert pair.chat().status_code == 200
    assert len(engines[0].received) > 4


def test_a_silent_engine_is_left_alone_after_three_tries(
    pair: RunningGateway, engines: list[ScriptedEngine]
) -> None:
    async def hang(connection: Connection) -> None:
        await asyncio.sleep(3600)

    engines[0].script = hang
    statuses = [pair.chat(stream=True).status_code for _ in range(12)]
    assert statuses.count(504) == len(engines[0].received) <= 4
    assert statuses[-3:] == [200] * 3


@pytest.fixture(scope="module")
def small(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """A gateway with two places and no engine yet."""
    return start_gateway(queue_limit=2)


def test_without_any_answering_engine_the_client_hears_503_at_once(small: RunningGateway) -> None:
    small.add_engine("gone").refuse()
    began = time.monotonic()
    response = small.chat("gone")
    assert time.monotonic() - began < 1
    assert (response.status_code, response.json()["error"]["code"]) == (503, "backend_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    small.remove_engine("gone-1")


def test_a_new_engine_under_the_old_id_starts_with_a_clean_slate(small: RunningGateway) -> None:
    small.add_engine("reborn").refuse()
    assert small.chat("reborn").status_code == 503
    small.remove_engine("reborn-1")
    assert small.client.get("/ready").status_code == 503
    small.add_engine("reborn")
    assert small.client.get("/ready").status_code == 200
    assert small.chat("reborn").status_code == 200


def test_versions_are_named_and_can_be_asked_for(small: RunningGateway) -> None:
    small.add_engine("v", version=1)
    small.add_engine("v", version=2)
    for version in (1, 2):
        assert small.chat(f"v@{version}").headers["x-everlearn-version"] == f"v@{version}"
    assert small.chat("v@3").status_code == 404


def test_more_requests_than_places_get_429(small: RunningGateway) -> None:
    async def slowly(connection: Connection) -> None:
        await asyncio.sleep(0.5)
        await well(connection)

    small.add_engine("busy").script = slowly

    async def run() -> list[int]:
        async with httpx2.AsyncClient(base_url=small.url, timeout=20, trust_env=False) as client:
            posts = (client.post("/v1/chat/completions", json=chat_body("busy")) for _ in range(5))
            return sorted(response.status_code for response in await asyncio.gather(*posts))

    assert asyncio.run(run()) == [200, 200, 429, 429, 429]
    assert small.chat("busy").status_code == 200


def test_retries_are_at_most_a_tenth_of_the_traffic() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.earn()
        retries += budget.spend()
    assert retries <= 100 + RETRY_RESERVE


def test_a_full_listen_queue_means_capacity_and_not_death(small: RunningGateway) -> None:
    """A unix socket refuses at once when too many wait to be accepted; the engine is well all the same."""
    engine = small.add_engine("crowded")
    engine.refuse()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(engine.socket))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(1)]
        for client in waiting:
            client.connect(str(engine.socket))
        responses = [small.chat("crowded") for _ in range(4)]
        for client in waiting:
            client.close()
    assert {(r.status_code, r.json()["error"]["code"]) for r in responses} == {(429, "overloaded")}


def test_a_model_whose_engine_starts_again_is_unavailable_not_unknown(gateway: RunningGateway) -> None:
    engine = gateway.add_engine("restarting", id="again")
    del gateway.engines["again"]  # nobody says any more that it is well
    set_state(gateway.db, "again", "starting")
    wait_until(lambda: not gateway.has("restarting"), "the gateway has seen that the engine is not ready")
    answer = gateway.chat("restarting")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "starting" in answer.json()["error"]["message"]
    withdraw(gateway.db, "again")
    engine.stop()


def test_a_machine_that_slept_answers_at_once(gateway: RunningGateway) -> None:
    """Its rows are all too old when it wakes up, and its engines are well."""
    engine = gateway.add_engine("asleep", id="sleeper")
    del gateway.engines["sleeper"]  # nobody says any more that it is well
    with write(gateway.db) as connection:
        connection.execute(
            update(ReplicaRow).where(ReplicaRow.id == "sleeper").values(heartbeat_at=time.time() - 12)
        )
    time.sleep(1)  # the gateway has read it
    assert gateway.chat("asleep").status_code == 200
    with write(gateway.db) as connection:
        connection.execute(
            update(ReplicaRow).where(ReplicaRow.id == "sleeper").values(heartbeat_at=time.time() - 3600)
        )
    wait_until(lambda: not gateway.has("asleep"), "the gateway has read it")
    assert gateway.chat("asleep").status_code == 503
    withdraw(gateway.db, "sleeper")
    engine.stop()


def test_a_request_waits_for_an_engine_that_starts_again(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    patient = start_gateway(engine_wait_s=20)
    engine = patient.add_engine("m", id="first")
    del patient.engines["first"]  # nobody says any more that it is well
    set_state(patient.db, "first", "starting")
    wait_until(lambda: not patient.has("m"), "the gateway has seen that the engine is not ready")
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(patient.chat, stream=stream) for stream in (True, False)]
        time.sleep(0.5)
        assert not any(each.done() for each in waiting)
        heartbeat(patient.db, "first", context=2048)
        assert [each.result().status_code for each in waiting] == [200, 200]
    withdraw(patient.db, "first")
    wait_until(lambda: patient.chat().status_code == 404, "nobody serves it any more: nothing to wait for")
    engine.stop()


async def stall(connection: Connection) -> None:
    await connection.head()
    for word in ("It ", "was "):
        await connection.delta(word)
    await asyncio.sleep(3600)


async def break_off(connection: Connection) -> None:
    await connection.head()
    await connection.delta("It ")
    connection.reset()


@pytest.mark.parametrize(("fault", "code"), [(stall, "backend_timeout"), (break_off, "backend_error")])
def test_an_engine_whose_streams_begin_and_never_end_is_left_alone(
    start_gateway: Callable[..., RunningGateway], fault: Callable, code: str
) -> None:
    """That each begins well says nothing for it."""
    gateway = start_gateway(inter_token_timeout_s=0.3)
    good, bad = gateway.add_engine("m", id="good"), gateway.add_engine("m", id="bad")
    bad.script = fault
    ends = [sse(gateway.chat(stream=True).text)[-1] for _ in range(10)]
    assert len(bad.received) == 3
    assert [end["error"]["code"] for end in ends if end != "[DONE]"] == [code] * 3
    assert gateway.metric('everlearn_replicas{model="m",state="ejected"}') == 1
    time.sleep(1.1)  # a probe that begins and stalls again
    [gateway.chat(stream=True) for _ in range(4)]
    assert len(bad.received) == 4
    bad.script = well
    time.sleep(2.1)
    before = len(good.received)
    for _ in range(6):
        assert sse(gateway.chat(stream=True).text)[-1] == "[DONE]"
    assert len(bad.received) > 5 and len(good.received) > before


def test_while_half_of_the_answers_fail_retries_stay_within_their_budget(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A storm of retries would double the load of engines that fail under it."""
    gateway = start_gateway()

    def every_other() -> Callable:
        fails = itertools.cycle([die, well])

        async def answer(connection: Connection) -> None:
            await next(fails)(connection)

        return answer

    engines = [gateway.add_engine("m", id=id) for id in ("one", "two")]
    for engine in engines:
        engine.script = every_other()
    asked = 300
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: gateway.chat(), range(asked)))
    sent = [request.headers["x-request-id"] for engine in engines for request in engine.received]
    retries = len(sent) - len(set(sent))
    assert RETRY_RESERVE <= retries <= RETRY_RESERVE + RETRY_SHARE * asked
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
