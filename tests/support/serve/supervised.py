"""A supervisor in a process of its own, as a user would run it, for the tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from everlearn.bundles.bundle import write_bundle
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[3]
FAKE = [sys.executable, str(Path(__file__).with_name("run_supervisor.py"))]
REAL = [sys.executable, "-m", "everlearn", "serve"]


def add_model(settings: Settings, name: str, **fields: object) -> Version:
    """Register a bundle that only the fake engine can serve."""
    registry = Registry(settings)
    with registry.staging() as staging:
        (staging / "genai_config.json").write_text(
            json.dumps({"model": {"name": name}, "fields": str(fields)})
        )
        described = {
            "format": "onnx-genai",
            "task": "generate",
            "architecture": "fake",
            "parameters": 1,
        } | fields
        write_bundle(staging, name=name, **described)
        return registry.add(staging, name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(ask: Callable[[], T], *, within_s: float = 30.0) -> T:
    """The first true answer; fails when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)
    return answer


class Supervised:
    """A running supervisor of the sources in ``root``, its children, and what it has printed so far."""

    def __init__(
        self,
        home: Path,
        *refs: str,
        command: list[str] = FAKE,
        port: int | None = None,
        root: Path = REPOSITORY,
        **env: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.parent / f"supervisor-{self.port}.log"
        self._output = self.log.open("w")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVERLEARN_")}
        self.environment = {
            **inherited,
            "PYTHONPATH": str(root),
            "COLUMNS": "200",
            "EVERLEARN_HOME": str(home),
            "EVERLEARN_SERVE__PORT": str(self.port),
            "EVERLEARN_CONTINUAL__WORKER": "off",
            **env,
        }
        self.process = subprocess.Popen(
            [*command, *refs],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=self.environment,
        )
        self.family = psutil.Process(self.process.pid)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ready(self, within_s: float = 90.0) -> "Supervised":
        """Wait for the last line of the summary. Fails with the output when the supervisor ends before it."""

        def serves() -> bool:
            assert self.process.poll() is None, self.output
            return "try it " in self.output

        eventually(serves, within_s=within_s)
        return self

    def child(self, word: str) -> psutil.Process:
        """The child process with `word` on its command line."""
        return eventually(lambda: next(iter(self.children(word)), None))

    def children(self, word: str, *, recursive: bool = False) -> list[psutil.Process]:
        """The living child processes with `word` on their command lines; one may end while this looks."""
        return [child for child in self.family.children(recursive=recursive) if _runs(child, word)]

    def ask(self, text: str, model: str = "tiny", **options: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **options}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=30)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics").text

    def answers(self, model: str = "tiny") -> bool:
        try:
            return self.ask("are you there", model).status_code == 200
        except httpx.TransportError:
            return False

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 20.0) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._output.close()


def _runs(process: psutil.Process, word: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@contextmanager
def supervised(home: Path, *refs: str, **options: object) -> Iterator[Supervised]:
    """A supervisor that is ended with the block."""
    server = Supervised(home, *refs, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()


def fails(home: Path, *refs: str, **options: object) -> str:
    """What a supervisor prints that does not start."""
    with supervised(home, *refs, **options) as server:
        assert server.process.wait(90) != 0
        assert "Traceback" not in server.output
        return server.output
