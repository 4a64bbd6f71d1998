"""Several gateways on one port: they share the clients, the figures and a real Valkey, and each may be killed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually, fails, supervised

pytestmark = pytest.mark.slow

TOGETHER = {"EVERLEARN_SERVE__GATEWAYS": "2", "EVERLEARN_CONTINUAL__WORKER": "on"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    settings = Settings(home=tmp_path_factory.mktemp("gateways") / "home")
    add_model(settings, "tiny")
    with supervised(settings.home, "tiny", **TOGETHER) as running:  # type: ignore[arg-type]
        yield running.ready()


def metric(server: Supervised, name: str) -> float:
    lines = server.metrics().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def answered(server: Supervised) -> float:
    return metric(server, 'everlearn_requests_total{model="tiny"')


def connections(server: Supervised) -> list[int]:
    """How many clients each gateway has now."""
    return [
        sum(
            each.status == "ESTABLISHED" and each.laddr.port == server.port
            for each in gateway.net_connections()
        )
        for gateway in server.children("serve.gateway")
    ]


def test_both_take_clients_and_count_them_together(server: Supervised) -> None:
    before = answered(server)
    with ThreadPoolExecutor(24) as pool:
        slow = [pool.submit(server.ask, "/slow one two three") for _ in range(24)]
        assert eventually(lambda: sum(connections(server)) >= 24 and min(connections(server)) > 0)
        assert eventually(lambda: metric(server, "everlearn_requests_in_flight") == 24)
        assert [each.result().status_code for each in slow] == [200] * 24
    assert answered(server) == before + 24
    assert metric(server, "everlearn_limits_shared") == 1  # through the worker's own Valkey


def test_a_killed_gateway_takes_only_its_own_streams_along(server: Supervised) -> None:
    before = answered(server)
    victim = server.children("serve.gateway")[0]

    def ask() -> bool:
        try:
            return server.ask("/slow one two three").status_code == 200
        except httpx.TransportError:
            return False

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask) for _ in range(24)]
        assert eventually(lambda: sum(connections(server)) >= 24)
        own = sum(c.status == "ESTABLISHED" and c.laddr.port == server.port for c in victim.net_connections())
        victim.kill()
        survived = sum(each.result() for each in asked)
        assert survived == 24 - own
        assert all(pool.map(lambda _: server.answers(), range(24)))  # some wait for the new one
    assert eventually(lambda: len(server.children("serve.gateway")) == 2)
    assert answered(server) == before + survived + 24
    assert metric(server, "everlearn_requests_in_flight") == 0


def test_a_killed_valkey_costs_no_answer_and_comes_back(server: Supervised) -> None:
    [valkey] = server.children("valkey-server", recursive=True)
    valkey.kill()
    for _ in range(10):
        assert server.answers()
        time.sleep(0.05)
    # It may be back before anyone misses it: test_shared.py looks at what the gateways do meanwhile.
    assert eventually(lambda: server.children("valkey-server", recursive=True) not in ([], [valkey]))
    assert eventually(lambda: metric(server, "everlearn_limits_shared") == 1)


def test_another_server_cannot_slip_onto_the_shared_port(server: Supervised, settings: Settings) -> None:
    add_model(settings, "tiny")
    output = fails(settings.home, "tiny", port=server.port, **TOGETHER)
    assert f"port {server.port}" in output and "--port" in output
