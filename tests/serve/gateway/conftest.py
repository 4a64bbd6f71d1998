"""A real gateway process on a real database, in front of scripted engines."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from everlearn.registry.database import open_database
from everlearn.settings import Settings
from serve.replicas import announce, heartbeat, unix_url, withdraw
from tests.support.serve.scripted_engine import ScriptedEngine, well


class RunningGateway:
    """The process, its engines and its database."""

    def __init__(
        self, home: Path, redis_url: str = "", within: Sequence[str] = (), sources: Path | None = None,
        **serve: Any,
    ) -> None:  # fmt: skip
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = Settings(home=home)
        self.db = open_database(self.settings)
        self.engines: dict[str, ScriptedEngine] = {}
        self.log_path = home / "gateway.log"
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        given = {"port": self.port, "keys_cache_ttl_s": 0.1, "engine_wait_s": 0} | serve
        environment = {
            f"EVERLEARN_SERVE__{name.upper()}": json.dumps(value) if isinstance(value, list) else str(value)
            for name, value in given.items()
        }
        if redis_url:
            environment["REDIS_URL"] = redis_url
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "serve.gateway", "--parent-pipe"],
            env=os.environ | {"EVERLEARN_HOME": str(home)} | environment,
            stdin=subprocess.PIPE,
            stderr=self.log_path.open("wb"),
            cwd=sources,
        )
        self.client = httpx2.Client(base_url=self.url, timeout=20, trust_env=False)
        wait_until(self._listens, "the gateway listens")

    def add_engine(
        self, model: str, version: int = 1, task: str = "generate", id: str | None = None,
        role: str = "champion",
    ) -> ScriptedEngine:  # fmt: skip
        """Start a scripted engine and announce it as ready."""
        id = id or f"{model}-{version}"
        engine = ScriptedEngine(Path(self.settings.home) / f"{id}.s")
        self.engines[id] = engine
        announce(
            self.db, id=id, model=model, version=version, digest="0" * 64, kind="onnx", task=task,
            url=unix_url(engine.socket), pid=os.getpid(), role=role,
        )  # fmt: skip
        heartbeat(self.db, id, context=2048)
        wait_until(lambda: self.has(model), f"{model} is routed to")
        time.sleep(0.3)
        return engine

    def remove_engine(self, id: str) -> None:
        withdraw(self.db, id)
        self.engines.pop(id).stop()
        time.sleep(0.4)

    def has(self, model: str) -> bool:
        return self.metric(f'everlearn_replicas{{model="{model}"') > 0

    def metric(self, name: str) -> float:
        """The sum of all samples that begin with `name`."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def chat(self, model: str = "m", text: str = "hi", **fields: Any) -> httpx2.Response:
        return self.client.post("/v1/chat/completions", json=chat_body(model, text, **fields))

    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> int:
        self._stopped.set()
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        for engine in self.engines.values():
            engine.stop()
        return code

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    def _beat(self) -> None:
        while not self._stopped.wait(2):
            for id in list(self.engines):
                heartbeat(self.db, id, context=2048)


def chat_body(model: str = "m", text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]} | fields


def sse(text: str) -> list[Any]:
    """The events of a stream; `[DONE]` as itself."""
    data = [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def raw_request(
    port: int, body: bytes, path: str = "/v1/chat/completions", headers: str = ""
) -> socket.socket:
    """A connection on which the request was sent and nothing was read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def start_gateway() -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways with given serve settings, each in a home of its own; stops them after the module."""
    started: list[RunningGateway] = []
    homes: list[str] = []

    def start(**serve: Any) -> RunningGateway:
        homes.append(tempfile.mkdtemp(prefix="gw"))
        started.append(RunningGateway(Path(homes[-1]), **serve))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """One gateway for a module, with model `m` (generate), and `e` (embed); short time limits."""
    gateway = start_gateway(first_token_timeout_s=1, inter_token_timeout_s=1)
    gateway.add_engine("m")
    gateway.add_engine("e", task="embed")
    return gateway


@pytest.fixture
def gateway(shared_gateway: RunningGateway) -> RunningGateway:
    """The module's gateway with its engines behaving well again, and trusted again."""
    for engine in shared_gateway.engines.values():
        engine.script = well
    wait_until(lambda: shared_gateway.chat().status_code == 200, "the engine is tried again")
    for engine in shared_gateway.engines.values():
        engine.received.clear()
    return shared_gateway


@pytest.fixture
def engine(gateway: RunningGateway) -> ScriptedEngine:
    """The engine behind model `m`."""
    return gateway.engines["m-1"]
