"""The version that served before stands by: going back to it takes no load, and it is in nobody's way."""

import time
from collections.abc import Iterator

import psutil
import pytest

from everlearn.registry.registry import Version
from everlearn.settings import Settings
from tests.serve.supervisor.test_swap import SAY_VERSION, engines, everlearn
from tests.support.serve.supervised import Supervised, eventually, supervised
from tests.support.serve.swapping import Town, serves, streaming

pytestmark = pytest.mark.slow

LOAD_S = 3.0  # of the fake engine's slow-to-load


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Town, Supervised]]:
    town = Town(Settings(home=tmp_path_factory.mktemp("standby") / "home"))
    with supervised(town.home, "tiny") as running:
        yield town, running.ready()


def engine_of(server: Supervised, version: Version) -> psutil.Process:
    def found() -> psutil.Process | None:
        word = f"--version {version.version} "
        return next((each for each in engines(server) if word in " ".join(each.cmdline()) + " "), None)

    engine = eventually(found)
    assert engine
    return engine


def promoted(town: Town, server: Supervised, version: Version) -> float:
    """Seconds until the server is on `version`."""
    began_at = time.monotonic()
    town.registry.promote(version.ref)
    eventually(lambda: serves(server, version), within_s=60)
    return time.monotonic() - began_at


def test_going_back_and_forth_loads_nothing_and_loses_nothing(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    old, new = town.champion(), town.add("slow-to-load")
    assert promoted(town, server, new) > LOAD_S
    pids = [engine_of(server, version).pid for version in (old, new)]
    with streaming(server.url, 6, SAY_VERSION) as clients:
        for version in (old, new, old, new):
            assert promoted(town, server, version) < LOAD_S
            clients.receive(6, version)
    assert clients.faults == []
    assert [engine_of(server, version).pid for version in (old, new)] == pids
    eventually(lambda: (town.state(old), town.state(new)) == ("standby", "ready"))
    assert "standby" in everlearn(town, "ps")


def test_it_makes_way_for_a_third(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    second, third = town.champion(), town.add()
    promoted(town, server, third)
    eventually(lambda: (town.state(second), town.state(third)) == ("standby", "ready"))
    eventually(lambda: len(engines(server)) == 2 and len(town.rows()) == 2)


def test_one_that_dies_is_not_started_again(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    champion, other = town.champion(), town.add()
    promoted(town, server, other)
    eventually(lambda: town.state(champion) == "standby")
    engine_of(server, champion).kill()
    eventually(lambda: len(engines(server)) == 1 and list(town.rows()) == [other.version])
    assert serves(server, other)
    promoted(town, server, champion)  # loads anew


def test_a_server_ends_with_its_standby(settings: Settings) -> None:
    town = Town(settings)
    with supervised(town.home, "tiny") as server:
        server.ready()
        old = town.champion()
        promoted(town, server, town.add())
        eventually(lambda: town.state(old) == "standby")
        children = server.family.children(recursive=True)
        assert server.end() == 0
        assert not psutil.wait_procs(children, timeout=5)[1]
    assert town.rows() == {}
