"""The version that served before stands by: going back to it takes no load, and it is in nobody's way."""

import time
from collections.abc import Iterator

import psutil
import pytest

from everlearn.registry.registry import Version
from everlearn.settings import Settings
from tests.serve.supervisor.test_swap import SAY_VERSION, engines, everlearn
from tests.support.serve.supervised import Supervised, eventually, supervised
from tests.support.serve.swapping import ServedHome, serves, streaming

pytestmark = pytest.mark.slow

LOAD_S = 3.0  # of the fake engine's slow-to-load


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedHome, Supervised]]:
    served_home = ServedHome(Settings(home=tmp_path_factory.mktemp("standby") / "home"))
    with supervised(served_home.home, "tiny") as running:
        yield served_home, running.ready()


def engine_of(server: Supervised, version: Version) -> psutil.Process:
    def found() -> psutil.Process | None:
        word = f"--version {version.version} "
        return next((each for each in engines(server) if word in " ".join(each.cmdline()) + " "), None)

    engine = eventually(found)
    assert engine
    return engine


def promoted(served_home: ServedHome, server: Supervised, version: Version) -> float:
    """Seconds until the server is on `version`."""
    began_at = time.monotonic()
    served_home.registry.promote(version.ref)
    eventually(lambda: serves(server, version), within_s=60)
    return time.monotonic() - began_at


def test_going_back_and_forth_loads_nothing_and_loses_nothing(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    old, new = served_home.champion(), served_home.add("slow-to-load")
    assert promoted(served_home, server, new) > LOAD_S
    pids = [engine_of(server, version).pid for version in (old, new)]
    with streaming(server.url, 6, SAY_VERSION) as clients:
        for version in (old, new, old, new):
            assert promoted(served_home, server, version) < LOAD_S
            clients.receive(6, version)
    assert clients.faults == []
    assert [engine_of(server, version).pid for version in (old, new)] == pids
    eventually(lambda: (served_home.state(old), served_home.state(new)) == ("standby", "ready"))
    assert "standby" in everlearn(served_home, "ps")


def test_it_makes_way_for_a_third(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    second, third = served_home.champion(), served_home.add()
    promoted(served_home, server, third)
    eventually(lambda: (served_home.state(second), served_home.state(third)) == ("standby", "ready"))
    eventually(lambda: len(engines(server)) == 2 and len(served_home.rows()) == 2)


def test_one_that_dies_is_not_started_again(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    champion, other = served_home.champion(), served_home.add()
    promoted(served_home, server, other)
    eventually(lambda: served_home.state(champion) == "standby")
    engine_of(server, champion).kill()
    eventually(lambda: len(engines(server)) == 1 and list(served_home.rows()) == [other.version])
    assert serves(server, other)
    promoted(served_home, server, champion)  # loads anew


def test_a_server_ends_with_its_standby(settings: Settings) -> None:
    served_home = ServedHome(settings)
    with supervised(served_home.home, "tiny") as server:
        server.ready()
        old = served_home.champion()
        promoted(served_home, server, served_home.add())
        eventually(lambda: served_home.state(old) == "standby")
        children = server.family.children(recursive=True)
        assert server.end() == 0
        assert not psutil.wait_procs(children, timeout=5)[1]
    assert served_home.rows() == {}
