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
from tests.support.serve.swapping import Town, serves

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Town, Supervised]]:
    town = Town(Settings(home=tmp_path_factory.mktemp("trials") / "home"))
    with supervised(town.home, "tiny", **ALONE) as running:
        yield town, running.ready()


def answered_by(server: Supervised, count: int = 20) -> Counter[str]:
    return Counter(server.ask("hello").headers["x-everlearn-version"] for _ in range(count))


def alone(server: Supervised, town: Town, version: Version) -> None:
    eventually(lambda: list(town.rows()) == [version.version], within_s=60)
    assert serves(server, version) and len(server.children("fake_engine")) == 1


def test_a_canary_comes_answers_and_goes(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    old, new = town.champion(), town.add()
    said = everlearn(town, "canary", new.ref, "--percent", "50")
    assert said == f"{new.ref} answers 50% of the requests for tiny, once it is warm\n"
    eventually(lambda: answered_by(server)[new.ref] > 0, within_s=60)
    assert set(answered_by(server, 60)) == {old.ref, new.ref}
    listed = everlearn(town, "ps")
    assert "canary 50%" in listed and "champion" in listed
    everlearn(town, "canary", "tiny", "--stop")
    alone(server, town, old)


def test_a_promoted_canary_answers_all(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    new = town.add()
    everlearn(town, "canary", new.ref, "--percent", "50")
    eventually(lambda: answered_by(server)[new.ref] > 0, within_s=60)
    everlearn(town, "promote", new.ref)
    eventually(lambda: serves(server, new), within_s=60)
    alone(server, town, new)


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_bad_version_on_trial_answers_nobody_and_its_reason_is_shown(
    shared: tuple[Town, Supervised], kind: str
) -> None:
    town, server = shared
    good, bad = town.champion(), town.add("loops")
    everlearn(town, kind, bad.ref, "--percent", "100")
    assert "one token over and over" in town.refusal(bad)
    assert answered_by(server) == {good.ref: 20}
    everlearn(town, kind, "tiny", "--stop")
    alone(server, town, good)


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


def test_a_shadow_hears_and_does_not_answer(shared: tuple[Town, Supervised]) -> None:
    town, server = shared
    good, other = town.champion(), town.add()
    everlearn(town, "shadow", other.ref, "--percent", "100")
    eventually(lambda: town.state(other) == "ready", within_s=60)

    def heard() -> bool:
        assert serves(server, good)
        return f'role="shadow",version="{other.version}"' in server.metrics()

    eventually(heard, within_s=60)
    everlearn(town, "shadow", "tiny", "--stop")
    alone(server, town, good)


def test_a_server_starts_with_its_trial(tmp_path: Path) -> None:
    town = Town(Settings(home=tmp_path / "home"))
    new = town.add()
    town.registry.try_out(new.ref, "canary", 1)
    with supervised(town.home, "tiny") as server:
        server.ready()
        eventually(lambda: answered_by(server, 3) == {new.ref: 3}, within_s=60)
