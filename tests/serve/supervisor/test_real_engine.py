"""A real engine that hangs, dies or has no memory left is started again, and only its own requests notice."""

import ctypes
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from everlearn.settings import Settings
from tests.support.serve.supervised import FAKE, Supervised, eventually, supervised

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads and writes /proc")]

SEIZE, INTERRUPT = 0x4206, 0x4207
"""Of ptrace: to stop one thread of a process, and no other."""


@pytest.fixture(scope="module")
def server(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """Both kinds of engine, each with one thread that computes."""
    home = tmp_path_factory.mktemp("real") / "home"
    shutil.copytree(real_settings.home / "store", home / "store")
    shutil.copy(real_settings.home / "everlearn.db", home)
    settings = {"REAL_ENGINE": "1", "EVERLEARN_ONNX__STUCK_S": "2", "EVERLEARN_ONNX__THREADS": "1"}
    sizes = {"EVERLEARN_ONNX__SLOTS": "4", "EVERLEARN_ONNX__CONTEXT": "1024"}
    with supervised(home, "smollm2", "minilm", command=FAKE, **settings, **sizes) as running:
        yield running.ready(within_s=120)


def engine_of(server: Supervised, model: str) -> psutil.Process:
    return server.child(f"--model {model}")


def embeds(server: Supervised) -> bool:
    body = {"model": "minilm", "input": "the river"}
    return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=30).status_code == 200


def answers(server: Supervised) -> bool:
    try:
        return server.ask("Say hello.", "smollm2", max_tokens=2).status_code == 200
    except httpx.TransportError:
        return False


def started_again(server: Supervised, before: psutil.Process) -> None:
    eventually(lambda: not before.is_running(), within_s=60)
    eventually(lambda: answers(server), within_s=60)
    assert engine_of(server, "smollm2").pid != before.pid


def busiest_thread(server: Supervised, process: psutil.Process) -> int:
    """The one that computes, which is not the one that answers HTTP."""
    before = {thread.id: thread.user_time for thread in process.threads()}
    assert server.ask("Count to thirty.", "smollm2", max_tokens=60).status_code == 200
    after = {thread.id: thread.user_time for thread in process.threads() if thread.id != process.pid}
    return max(after, key=lambda id: after[id] - before.get(id, 0.0))


class Stopped:
    """One thread of another process that does not run any more; whoever traces it must be one thread, too."""

    def __init__(self, thread_id: int) -> None:
        self._tracer = ThreadPoolExecutor(1)
        self._tracer.submit(self._stop, thread_id).result()

    @staticmethod
    def _stop(thread_id: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        for request in (SEIZE, INTERRUPT):
            if libc.ptrace(request, thread_id, None, None):
                pytest.skip(f"no thread may be stopped here: errno {ctypes.get_errno()}")

    def let_go(self) -> None:
        self._tracer.shutdown()


def test_an_engine_whose_thread_hangs_while_it_says_that_it_is_well_is_started_again(
    server: Supervised,
) -> None:
    engine = engine_of(server, "smollm2")
    stopped = Stopped(busiest_thread(server, engine))
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(server.ask, "Say hello.", "smollm2", max_tokens=2)
        time.sleep(1)
        assert server.children("--model smollm2")[0].pid == engine.pid
        assert embeds(server)
        eventually(
            lambda: engine.status() == psutil.STATUS_ZOMBIE, within_s=30
        )  # killed, and held by its tracer
        stopped.let_go()
        assert refused.result().status_code in (200, 502, 503)
    started_again(server, engine)
    assert "showed no health" in server.output


def test_an_engine_that_waits_for_nothing_is_well(server: Supervised) -> None:
    engine = engine_of(server, "smollm2")
    time.sleep(3)  # longer than a step may take
    assert answers(server)
    assert engine_of(server, "smollm2").pid == engine.pid


def test_a_segmentation_fault_ends_that_engine_alone(server: Supervised) -> None:
    engine, other = engine_of(server, "smollm2"), engine_of(server, "minilm")
    received: list[str] = []

    def stream() -> None:
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Tell a long story."}],
            "stream": True,
        }
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            received.extend(response.iter_lines())

    reader = threading.Thread(target=stream)
    reader.start()
    eventually(lambda: len(received) > 4)
    engine.send_signal(signal.SIGSEGV)
    reader.join(10)
    assert '"error"' in "".join(received[-3:]) and "[DONE]" not in "".join(received)
    assert embeds(server)
    started_again(server, engine)
    assert "was killed by SIGSEGV" in server.output
    assert engine_of(server, "minilm").pid == other.pid


@pytest.mark.parametrize("read_before", [False, True], ids=["for a thread", "for computing"])
def test_an_engine_without_memory_left_harms_nobody_else_and_comes_back(
    server: Supervised, read_before: bool
) -> None:
    engine, other = engine_of(server, "smollm2"), engine_of(server, "minilm")
    text = "the river runs through the old served_home " * 90
    if read_before:
        assert server.ask(text, "smollm2", max_tokens=4).status_code == 200
    most = engine.memory_info().vms + 1024**2
    engine.rlimit(resource.RLIMIT_AS, (most, most))
    asked = (server.ask(f"{n} {text}", "smollm2", max_tokens=4, n=2).status_code for n in range(20))
    status = next((status for status in asked if status != 200), 200)
    assert status in (502, 503), "it had memory"
    assert embeds(server)
    started_again(server, engine)
    assert engine_of(server, "minilm").pid == other.pid
