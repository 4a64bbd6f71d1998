"""The running server follows the champion: real processes, real kills, and clients that stream all the time.

Most tests share one server, as a server sees one swap after the other; each leaves it with a sound champion.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import httpx
import psutil
import pytest

from everlearn.errors import Conflict
from everlearn.registry.registry import Version
from everlearn.settings import Settings
from tests.support.serve.supervised import REPOSITORY, Supervised, eventually, free_port, supervised
from tests.support.serve.swapping import ServedHome, serves, stream, streaming

pytestmark = pytest.mark.slow

SWAP_S = 60.0
NOTICE_S = 1.0  # as in run_supervisor.py
ALONE = {"EVERLEARN_SERVE__KEEP_PREVIOUS": "off"}  # see test_standby.py
SAY_VERSION = {"model": "tiny", "messages": [{"role": "user", "content": "/version"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedHome, Supervised]]:
    served_home = ServedHome(Settings(home=tmp_path_factory.mktemp("swap") / "home"))
    with supervised(
        served_home.home, "tiny", EVERLEARN_SERVE__KEEP_PREVIOUS="off"
    ) as running:  # see test_standby.py
        yield served_home, running.ready()


@pytest.fixture
def server(shared: tuple[ServedHome, Supervised]) -> Supervised:
    served_home, running = shared
    swapped(running, served_home.champion())
    return running


@pytest.fixture
def served_home(shared: tuple[ServedHome, Supervised]) -> ServedHome:
    return shared[0]


@pytest.fixture
def own(settings: Settings) -> ServedHome:
    """For a test that starts its own server."""
    return ServedHome(settings)


def swapped(server: Supervised, version: Version) -> None:
    """Waits until the server is on `version`, and has no other engine."""
    eventually(lambda: serves(server, version), within_s=SWAP_S)
    eventually(lambda: len(engines(server)) == 1, within_s=SWAP_S)


def engines(server: Supervised) -> list[psutil.Process]:
    return server.children("fake_engine")


def everlearn(served_home: ServedHome, *arguments: str) -> str:
    environment = {"EVERLEARN_HOME": str(served_home.home), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "everlearn", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=PIPE, text=True).stdout


# ------------------------------------------------------------------------------------------------ good versions


def test_ten_swaps_under_streaming_clients_lose_no_request_and_mix_no_answer(
    served_home: ServedHome, server: Supervised
) -> None:
    old, new = served_home.champion(), served_home.add()
    with streaming(server.url, 6, SAY_VERSION) as clients:
        for _ in range(5):
            served_home.registry.promote(new.ref)
            eventually(lambda: serves(server, new), within_s=SWAP_S)
            clients.receive(6, new)
            served_home.registry.rollback("tiny")
            eventually(lambda: serves(server, old), within_s=SWAP_S)
            clients.receive(6, old)
    assert clients.faults == []
    assert set(clients.answers) == {old.ref, new.ref}
    swapped(server, old)
    eventually(lambda: set(served_home.rows()) == {old.version})


def test_an_answer_that_runs_ends_on_the_old_version_while_new_requests_get_the_new(
    served_home: ServedHome, server: Supervised, tmp_path: Path
) -> None:
    old, end = served_home.champion(), tmp_path / "end"
    received: list[tuple[str, str]] = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"/until {end}"}]}
        reader = threading.Thread(target=lambda: received.append(stream(client, body)))
        reader.start()
        new = served_home.add()
        everlearn(served_home, "promote", new.ref)
        eventually(lambda: serves(server, new), within_s=SWAP_S)
        time.sleep(2 * NOTICE_S)
        assert not received and served_home.state(old) == "draining"
        end.touch()
        reader.join(30)
    [(version, text)] = received
    assert version == old.ref and text.endswith("on end")
    swapped(server, new)
    eventually(lambda: served_home.state(old) is None)


def test_an_answer_beyond_the_drain_time_is_ended_with_an_error(own: ServedHome) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "/until /nowhere"}], "stream": True}
    with supervised(own.home, "tiny", EVERLEARN_SERVE__DRAIN_TIMEOUT_S="0", **ALONE) as server:  # type: ignore[arg-type]
        server.ready()
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            own.registry.promote(own.add().ref)
            received = "".join(response.iter_text())
        assert '"error"' in received and "[DONE]" not in received
        swapped(server, own.champion())


def test_every_gateway_is_on_the_new_version_within_ten_seconds_and_never_goes_back(
    served_home: ServedHome, server: Supervised
) -> None:
    port = free_port()
    environment = {
        "EVERLEARN_HOME": str(served_home.home),
        "EVERLEARN_SERVE__PORT": str(port),
        "PATH": "/usr/bin",
    }
    second = subprocess.Popen([sys.executable, "-m", "serve.gateway"], cwd=REPOSITORY, env=environment)
    urls = [server.url, f"http://127.0.0.1:{port}"]
    old, new = served_home.champion(), served_home.add()
    try:
        eventually(lambda: answering_version(urls[1]) == old.ref, within_s=SWAP_S)
        seen: dict[str, list[str | None]] = {url: [] for url in urls}
        served_home.registry.promote(new.ref)
        eventually(lambda: served_home.state(new) == "ready", within_s=SWAP_S)
        deadline = time.monotonic() + 10
        while any(answers[-2:] != [new.ref] * 2 for answers in seen.values()):
            assert time.monotonic() < deadline, seen
            for url in urls:
                seen[url].append(answering_version(url))
        for answers in seen.values():
            first = answers.index(new.ref)
            assert set(answers[:first]) <= {old.ref} and set(answers[first:]) == {new.ref}
    finally:
        second.terminate()
        assert second.wait(20) == 0


def answering_version(url: str) -> str | None:
    try:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=10)
    except httpx.TransportError:
        return None
    return response.headers.get("x-everlearn-version")


def test_a_new_version_that_dies_after_the_swap_is_started_again(
    served_home: ServedHome, server: Supervised
) -> None:
    new = served_home.add()
    served_home.registry.promote(new.ref)
    swapped(server, new)
    before = engines(server)[0]
    before.kill()
    eventually(lambda: server.answers() and engines(server)[0].pid != before.pid, within_s=SWAP_S)
    swapped(server, new)


# ------------------------------------------------------------------------------------------------- bad versions


def test_versions_that_cannot_load_or_answer_nonsense_never_serve_and_say_why(
    served_home: ServedHome, server: Supervised
) -> None:
    reasons = {
        "dies-at-load": "no room for the weights",
        "dies-in-warm-up": "exited with code 1",
        "hangs-in-warm-up": "did not answer its warm-up within 5 s",
        "loops": "one token over and over: 'the the",
        "empty": "an empty text",
        "nan": "no finite numbers",
        "refuses": 'status 500: {"error": {"message": "the weights do not fit the graph"',
    }
    old = served_home.champion()
    with streaming(server.url, 2, SAY_VERSION) as clients:
        for architecture, reason in reasons.items():
            bad = served_home.add(architecture)
            served_home.registry.promote(bad.ref)
            assert reason in served_home.refusal(bad)
            eventually(lambda ref=bad.ref: f'"ref": "{ref}", "reason"' in server.output)
            assert serves(server, old)
    assert clients.faults == [] and set(clients.answers) == {old.ref}
    listed = everlearn(served_home, "ps")
    assert old.ref in listed and "ready" in listed and "the weights do not fit the graph" in listed
    served_home.registry.promote(served_home.add().ref)
    swapped(server, served_home.champion())
    eventually(lambda: set(served_home.rows()) == {served_home.champion().version})


def test_a_version_that_hangs_at_its_load_is_refused(own: ServedHome) -> None:
    with supervised(own.home, "tiny", IMPATIENT_START_S="25", **ALONE) as server:  # type: ignore[arg-type]
        server.ready()
        sound, hanging = own.champion(), own.add("hangs-at-load")
        own.registry.promote(hanging.ref)
        assert "showed no health for 25 s" in own.refusal(hanging)
        swapped(server, sound)


def test_a_refused_version_is_tried_again_when_it_is_promoted_anew(
    served_home: ServedHome, server: Supervised
) -> None:
    old, damaged = served_home.champion(), served_home.add()
    file = served_home.registry.path(damaged) / "genai_config.json"
    sound = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(sound.replace(b"tiny", b"tin"))
    served_home.registry.promote(damaged.ref)
    assert "genai_config.json" in served_home.refusal(damaged)
    assert serves(server, old)
    file.write_bytes(sound)
    served_home.registry.promote(damaged.ref)
    swapped(server, damaged)
    eventually(lambda: set(served_home.rows()) == {damaged.version})


def test_a_champion_that_is_given_up_makes_way_for_the_previous_one(own: ServedHome, tmp_path: Path) -> None:
    misbehave = tmp_path / "misbehave"
    with supervised(own.home, "tiny", FAKE_ENGINE_MISBEHAVE=str(misbehave), **ALONE) as server:  # type: ignore[arg-type]
        server.ready()
        old, new = own.champion(), own.add()
        own.registry.promote(new.ref)
        swapped(server, new)
        misbehave.with_name(f"misbehave-{new.version}").write_text("1 a bad block under the weights")
        engines(server)[0].kill()
        swapped(server, old)
        assert "a bad block" in own.refusal(new)


# ------------------------------------------------------------------------------- aliases that move in odd ways


def test_the_alias_moves_on_while_a_version_loads(served_home: ServedHome, server: Supervised) -> None:
    overtaken = served_home.add("hangs-at-load")
    served_home.registry.promote(overtaken.ref)
    eventually(lambda: served_home.state(overtaken) == "starting")
    new = served_home.add()
    served_home.registry.promote(new.ref)
    swapped(server, new)
    eventually(lambda: set(served_home.rows()) == {new.version})


def test_the_alias_moves_back_while_a_version_loads(served_home: ServedHome, server: Supervised) -> None:
    old, before = served_home.champion(), engines(server)[0].pid
    loading = served_home.add("hangs-at-load")
    served_home.registry.promote(loading.ref)
    eventually(lambda: served_home.state(loading) == "starting")
    served_home.registry.rollback("tiny")
    eventually(lambda: served_home.state(loading) is None)
    assert [engine.pid for engine in engines(server)] == [before] and serves(server, old)


def test_a_model_whose_champion_vanishes_serves_on(served_home: ServedHome, server: Supervised) -> None:
    old, before = served_home.champion(), engines(server)[0].pid
    newer = served_home.add()
    served_home.registry.remove_alias("tiny", "champion")
    time.sleep(1.5)
    assert [engine.pid for engine in engines(server)] == [before] and serves(server, old)
    served_home.registry.promote(newer.ref)
    swapped(server, newer)


def test_a_pinned_version_does_not_follow(own: ServedHome) -> None:
    pinned, other = own.champion(), own.add()
    with supervised(own.home, pinned.ref) as server:
        server.ready()
        own.registry.promote(other.ref)
        time.sleep(1.5)
        swapped(server, pinned)


# --------------------------------------------------------------------------------------------------- restarts


def test_a_supervisor_killed_in_the_middle_of_a_swap_comes_up_on_the_champion(own: ServedHome) -> None:
    with supervised(own.home, "tiny", **ALONE) as server:
        server.ready()
        new = own.add("slow-to-load")
        own.registry.promote(new.ref)
        eventually(lambda: own.state(new) == "starting")
        children = server.family.children(recursive=True)
        server.end(signal.SIGKILL)
        psutil.wait_procs(children, timeout=10)
    with supervised(own.home, "tiny", **ALONE) as again:
        swapped(again.ready(), new)
        assert {version: row.state for version, row in own.rows().items()} == {new.version: "ready"}


def test_a_restart_on_a_champion_that_is_refused_serves_the_previous_one(own: ServedHome) -> None:
    sound, bad = own.champion(), own.add("loops")
    own.registry.promote(bad.ref)
    with supervised(own.home, "tiny", **ALONE) as server:
        swapped(server.ready(), sound)
        assert "one token over and over" in own.refusal(bad)
        with pytest.raises(Conflict):
            own.registry.delete(sound.ref)  # what a rollback goes back to is kept
        own.registry.promote(own.add().ref)
        swapped(server, own.champion())
