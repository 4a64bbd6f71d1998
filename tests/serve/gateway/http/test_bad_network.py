"""A server elsewhere behind a bad network: each request ends, well or in time, and leaves no descriptor behind."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from everlearn.registry.keys import create_key
from serve.gateway.routing.replica import KEEP_ALIVE_S
from tests.serve.gateway.conftest import RunningGateway, sse, wait_until
from tests.support.serve.bad_network import BadNetwork

TIMEOUT_S = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def far(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway()
    gateway.add_engine("m")
    return gateway


@pytest.fixture(scope="module")
def network(far: RunningGateway) -> Iterator[BadNetwork]:
    network = BadNetwork(far.port)
    yield network
    network.stop()


@pytest.fixture(scope="module")
def near(start_gateway: Callable[..., RunningGateway], network: BadNetwork) -> RunningGateway:
    remote = {"model": "m", "url": f"http://127.0.0.1:{network.port}"}
    return start_gateway(remotes=[remote], first_token_timeout_s=TIMEOUT_S, inter_token_timeout_s=1)


@pytest.fixture(autouse=True)
def healed(near: RunningGateway, network: BadNetwork) -> None:
    network.heal()
    wait_until(lambda: near.chat().status_code == 200, "the remote server is there")


def descriptors(gateway: RunningGateway) -> int:
    """Of the gateway's connections to others; its files come and go by themselves."""
    connections = psutil.Process(gateway.process.pid).net_connections("tcp")
    return sum(bool(each.raddr) and each.laddr.port != gateway.port for each in connections)


def latency(network: BadNetwork) -> None:
    network.latency_s = 1.0


def one_byte_a_second(network: BadNetwork) -> None:
    network.bytes_per_s = 1


def slow_close(network: BadNetwork) -> None:
    network.closes = False


def reset_at_once(network: BadNetwork) -> None:
    network.resets_after_bytes = 0


def reset_in_the_middle(network: BadNetwork) -> None:
    network.resets_after_bytes = 400


@pytest.mark.parametrize(
    ("fault", "well"),
    [
        (latency, True),
        (one_byte_a_second, False),
        (slow_close, True),
        (reset_at_once, False),
        (reset_in_the_middle, False),
    ],
)
def test_each_request_over_a_bad_network_ends_and_leaves_nothing_behind(
    near: RunningGateway, network: BadNetwork, fault: Callable[[BadNetwork], None], well: bool
) -> None:
    """A second of latency each way is two a round trip."""
    fault(network)
    for stream in (True, False):
        began = time.monotonic()
        answer = near.chat(stream=stream)
        assert time.monotonic() - began < 5 * TIMEOUT_S + 5
        last = sse(answer.text)[-1] if stream and answer.status_code == 200 else None
        good = answer.status_code == 200 and (last is None or last == "[DONE]")
        if well:
            assert good, answer.text
        elif not good:
            assert answer.status_code in (502, 503, 504) or last["error"]["code"].startswith("backend_")
    network.heal()
    wait_until(lambda: near.metric("everlearn_requests_in_flight") == 0, "no request is left")
    wait_until(lambda: descriptors(near) == 0, "its connections are closed", 10)


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs a /etc/hosts of its own",
)
def test_a_name_that_moves_to_another_address_is_followed(
    start_gateway: Callable[..., RunningGateway],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that has no address any more is 503."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    far = start_gateway()  # with a key, for without one it answers to no such name
    far.add_engine("m")
    secret, _ = create_key(far.db, "near")
    monkeypatch.setenv("FAR_KEY", secret)
    wait_until(lambda: far.chat().status_code == 401, "the key is required")
    here = BadNetwork(far.port, "127.0.0.2")
    there = BadNetwork(far.port, "127.0.0.3", here.port)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 far.test\n")
    own_hosts = ["unshare", "-rm", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    remote = {"model": "m", "url": f"http://far.test:{here.port}", "key_variable": "FAR_KEY"}
    gateway = start_gateway(
        within=own_hosts,
        remotes=[remote],
        first_token_timeout_s=3,
    )
    wait_until(lambda: gateway.chat().status_code == 200, "the name is found")
    assert there.connections == 0
    hosts.write_text("127.0.0.3 far.test\n")
    time.sleep(KEEP_ALIVE_S + 0.5)
    here.stop()  # with the connections that are open: they may go on to the old address while it lives
    wait_until(lambda: gateway.chat().status_code == 200, "its new address is asked")
    assert there.connections > 0
    assert {gateway.chat().status_code for _ in range(5)} == {200}
    hosts.write_text("")
    wait_until(lambda: gateway.chat().status_code == 503, "there is no address")
    assert int(gateway.chat().headers["retry-after"]) >= 1
    there.stop()
