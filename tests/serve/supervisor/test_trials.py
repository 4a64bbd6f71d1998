"""`everlearn canary` and `everlearn shadow` on a running server: real processes, which come and go with the trial."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everlearn.registry.database import open_database
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from serve.gateway.pages.overview import Overview
from tests.serve.supervisor.test_swap import ALONE, everlearn
from tests.support.serve.supervised import Supervised, add_model, eventually, supervised
from tests.support.serve.swapping import ServedHome, serves

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedHome, Supervised]]:
    served_home = ServedHome(Settings(home=tmp_path_factory.mktemp("trials") / "home"))
    with supervised(served_home.home, "tiny", **ALONE) as running:
        yield served_home, running.ready()


def answered_by(server: Supervised, count: int = 20) -> Counter[str]:
    return Counter(server.ask("hello").headers["x-everlearn-version"] for _ in range(count))


def alone(server: Supervised, served_home: ServedHome, version: Version) -> None:
    eventually(lambda: list(served_home.rows()) == [version.version], within_s=60)
    assert serves(server, version) and len(server.children("fake_engine")) == 1


def test_a_canary_comes_answers_and_goes(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    old, new = served_home.champion(), served_home.add()
    said = everlearn(served_home, "canary", new.ref, "--percent", "50")
    assert said == f"{new.ref} answers 50% of the requests for tiny, once it is warm\n"
    eventually(lambda: answered_by(server)[new.ref] > 0, within_s=60)
    assert set(answered_by(server, 60)) == {old.ref, new.ref}
    listed = everlearn(served_home, "ps")
    assert "canary 50%" in listed and "champion" in listed
    everlearn(served_home, "canary", "tiny", "--stop")
    alone(server, served_home, old)


def test_a_promoted_canary_answers_all(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    new = served_home.add()
    everlearn(served_home, "canary", new.ref, "--percent", "50")
    eventually(lambda: answered_by(server)[new.ref] > 0, within_s=60)
    everlearn(served_home, "promote", new.ref)
    eventually(lambda: serves(server, new), within_s=60)
    alone(server, served_home, new)


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_bad_version_on_trial_answers_nobody_and_its_reason_is_shown(
    shared: tuple[ServedHome, Supervised], kind: str
) -> None:
    served_home, server = shared
    good, bad = served_home.champion(), served_home.add("loops")
    everlearn(served_home, kind, bad.ref, "--percent", "100")
    assert "one token over and over" in served_home.refusal(bad)
    assert answered_by(server) == {good.ref: 20}
    everlearn(served_home, kind, "tiny", "--stop")
    alone(server, served_home, good)


def test_what_is_compressed_to_the_champion_is_not_tried_out(settings: Settings) -> None:
    tensors = add_model(settings, "tiny", format="safetensors")
    champion = add_model(settings, "tiny", parent=tensors.digest)
    with supervised(settings.home, "tiny") as server:
        server.ready()
        Registry(settings).try_out(tensors.ref, "canary", 0.5)
        eventually(lambda: "nothing to try out" in json.dumps(ps(settings)), within_s=60)
        assert answered_by(server) == {champion.ref: 20} and len(server.children("fake_engine")) == 1


def ps(settings: Settings) -> list[dict[str, Any]]:
    """The rows of the engines, as the console shows them."""
    return Overview(open_database(settings)).read()["engines"]["rows"]


def test_a_shadow_hears_and_does_not_answer(shared: tuple[ServedHome, Supervised]) -> None:
    served_home, server = shared
    good, other = served_home.champion(), served_home.add()
    everlearn(served_home, "shadow", other.ref, "--percent", "100")
    eventually(lambda: served_home.state(other) == "ready", within_s=60)

    def heard() -> bool:
        assert serves(server, good)
        return f'role="shadow",version="{other.version}"' in server.metrics()

    eventually(heard, within_s=60)
    everlearn(served_home, "shadow", "tiny", "--stop")
    alone(server, served_home, good)


def test_a_server_starts_with_its_trial(tmp_path: Path) -> None:
    served_home = ServedHome(Settings(home=tmp_path / "home"))
    new = served_home.add()
    served_home.registry.try_out(new.ref, "canary", 1)
    with supervised(served_home.home, "tiny") as server:
        server.ready()
        eventually(lambda: answered_by(server, 3) == {new.ref: 3}, within_s=60)
