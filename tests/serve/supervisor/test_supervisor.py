"""`everlearn serve`: real processes and the real gateway; the engine is the tests' small one, to misbehave at will."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key
from everlearn.registry.tables import ReplicaRow
from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually, fails, supervised

pytestmark = pytest.mark.slow

RESTART = '"next": "restart"'


@pytest.fixture
def home(settings: Settings) -> Path:
    """A home that holds one small model."""
    add_model(settings, "tiny")
    return settings.home


@pytest.fixture
def server(home: Path) -> Iterator[Supervised]:
    with supervised(home, "tiny") as running:
        yield running.ready()


def rows(home: Path) -> list[ReplicaRow]:
    with Session(open_database(Settings(home=home))) as session:
        return list(session.scalars(select(ReplicaRow)))


def stream(server: Supervised, text: str) -> str:
    """Everything a streamed answer sends, errors included."""
    received = b""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response:
        for piece in response.iter_raw():
            received += piece
    return received.decode()


# ---------------------------------------------------------------------------------------------------- starting


def test_one_command_serves_a_model_and_says_where(server: Supervised) -> None:
    assert server.ask("hello there").json()["choices"][0]["message"]["content"].split() == ["hello", "there"]
    for told in (server.url, "tiny@1", "curl ", f"{server.url}/", "ready in"):
        assert told in server.output


def test_the_printed_curl_command_works(server: Supervised) -> None:
    [line] = [line for line in server.output.splitlines() if "curl " in line]
    command = "curl --fail --silent " + line.split("curl ", 1)[1]
    assert "capital of France" in os.popen(command).read()


def test_without_names_it_serves_every_champion(settings: Settings) -> None:
    add_model(settings, "tiny")
    add_model(settings, "small")
    add_model(settings, "raw", format="safetensors")
    with supervised(settings.home) as server:
        server.ready()
        assert server.answers("tiny") and server.answers("small")
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert sorted(model["id"] for model in models) == ["small", "tiny"]


def test_the_supervisor_never_loads_torch_or_onnxruntime(server: Supervised) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in loaded and "onnxruntime" not in loaded


def test_a_home_with_a_long_path_still_gets_sockets(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    add_model(Settings(home=home), "tiny")
    with supervised(home, "tiny") as server:
        assert server.ready().answers()


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_home_without_models_says_what_to_do(settings: Settings) -> None:
    assert "everlearn serve smollm2" in fails(settings.home)


def test_an_unknown_model_is_named_with_what_there_is(home: Path) -> None:
    output = fails(home, "gpt-17")
    assert "gpt-17" in output and "tiny" in output and "smollm2" in output


def test_a_taken_port_is_refused_before_any_work(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = fails(home, "tiny", EVERLEARN_SERVE__PORT=str(port))
    assert str(port) in output and "--port" in output
    assert rows(home) == []


def test_a_second_supervisor_of_the_same_home_is_refused(server: Supervised, home: Path) -> None:
    output = fails(home, "tiny")
    assert f"process {server.process.pid}" in output
    assert server.answers()


def test_other_machines_are_not_let_in_without_a_key(home: Path) -> None:
    assert "everlearn keys create" in fails(home, "tiny", EVERLEARN_SERVE__HOST="0.0.0.0")


def test_with_a_key_it_serves_other_machines_and_says_how_to_ask(home: Path) -> None:
    secret, _ = create_key(open_database(Settings(home=home)), "me")
    with supervised(home, "tiny", EVERLEARN_SERVE__HOST="0.0.0.0") as server:  # type: ignore[arg-type]
        assert "Authorization: Bearer" in server.ready().output
        assert server.ask("hello").status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


# ---------------------------------------------------------------------------------------------------- mishaps


def test_an_engine_that_dies_mid_stream_ends_that_stream_and_serves_the_next(server: Supervised) -> None:
    received = stream(server, "/crash one two three four")
    assert "one" in received and '"error"' in received and "[DONE]" not in received
    assert eventually(server.answers, within_s=10)
    assert "exited with code 1" in server.output


def test_a_killed_engine_is_started_again(server: Supervised) -> None:
    before = server.child("fake_engine")
    before.kill()
    assert eventually(server.answers, within_s=10)
    assert server.child("fake_engine").pid != before.pid


def test_a_hung_engine_is_killed_and_started_again(server: Supervised) -> None:
    before = server.child("fake_engine").pid
    threading.Thread(target=lambda: server.ask("/hang"), daemon=True).start()
    eventually(lambda: "showed no health" in server.output, within_s=15)
    assert eventually(server.answers, within_s=10)
    assert server.child("fake_engine").pid != before


def test_a_stopped_engine_is_killed_and_started_again(server: Supervised) -> None:
    engine = server.child("fake_engine")
    engine.suspend()
    eventually(lambda: not engine.is_running(), within_s=15)
    assert eventually(server.answers, within_s=10)


def test_a_killed_gateway_is_started_again(server: Supervised) -> None:
    before = server.child("serve.gateway")
    before.kill()
    assert eventually(server.answers, within_s=15)
    assert server.child("serve.gateway").pid != before.pid


def test_a_crash_loop_ends_in_one_clear_error_with_the_last_words(home: Path, tmp_path: Path) -> None:
    misbehave = tmp_path / "misbehave"
    misbehave.write_text("1 no room for the weights")
    output = fails(home, "tiny", FAKE_ENGINE_MISBEHAVE=str(misbehave))
    assert output.count(RESTART) == 2
    assert "nothing can be served" in output and "no room for the weights" in output


def test_a_misconfigured_engine_is_not_tried_again(home: Path, tmp_path: Path) -> None:
    misbehave = tmp_path / "misbehave"
    misbehave.write_text("2 slots must be positive")
    output = fails(home, "tiny", FAKE_ENGINE_MISBEHAVE=str(misbehave))
    assert RESTART not in output and "slots must be positive" in output


def test_one_failed_engine_leaves_the_others_serving(settings: Settings, tmp_path: Path) -> None:
    misbehave = tmp_path / "misbehave"
    add_model(settings, "tiny")
    add_model(settings, "small")
    with supervised(settings.home, "tiny", "small", FAKE_ENGINE_MISBEHAVE=str(misbehave)) as server:  # type: ignore[arg-type]
        server.ready()
        misbehave.write_text("1 a broken disk")
        server.child("--model small").kill()
        [row] = eventually(lambda: [row for row in rows(settings.home) if row.state == "failed"], within_s=15)
        assert row.model == "small" and "a broken disk" in (row.error or "")
        assert server.answers("tiny")


# ---------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_success(
    server: Supervised, home: Path, number: signal.Signals
) -> None:
    children = server.family.children(recursive=True)
    assert server.end(number) == 0
    assert not any(child.is_running() for child in children)
    assert rows(home) == []


def test_running_answers_end_before_the_server_does(server: Supervised) -> None:
    received: list[str] = []
    client = threading.Thread(target=lambda: received.append(stream(server, "/slow one two three")))
    client.start()
    time.sleep(0.5)
    assert server.end() == 0
    client.join(5)
    assert "three" in received[0] and "[DONE]" in received[0]


def test_a_second_signal_stops_at_once(server: Supervised) -> None:
    children = server.family.children(recursive=True)
    client = threading.Thread(target=lambda: server.ask("/slow " + "word " * 60), daemon=True)
    client.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGINT)
    eventually(lambda: "second signal" in server.output)
    assert server.end(signal.SIGINT, within_s=3) == 130
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


def test_a_killed_supervisor_takes_its_children_along_and_the_next_one_starts(
    server: Supervised, home: Path
) -> None:
    children = server.family.children(recursive=True)
    assert len(children) == 3  # the engine, the gateway, and what works on batches
    server.end(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    with supervised(home, "tiny") as again:
        assert again.ready().answers()
        assert len(rows(home)) == 1


def test_a_killed_supervisor_takes_a_hung_engine_along(server: Supervised) -> None:
    engine = server.child("fake_engine")
    engine.suspend()
    server.end(signal.SIGKILL)
    _, alive = psutil.wait_procs([engine], timeout=5)
    assert not alive
