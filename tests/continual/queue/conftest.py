"""A home with a model and a file in it, and real workers on it: broker, consumer and children are processes."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from continual.queue.files import Files
from continual.queue.jobs import Jobs
from continual.queue.states import Job
from continual.recipe import ContinualRecipe
from continual.webhooks.courier import Courier
from everlearn.bundles.bundle import write_bundle
from everlearn.cli.commands import app
from everlearn.redis_address import own_socket
from everlearn.registry.registry import Registry
from everlearn.settings import ContinualSettings, Settings
from tests.support.webhook_receiver import Receiver, receivers

ROOT = Path(__file__).resolve().parents[3]
HURRIED = ContinualSettings(lease_s=3, heartbeat_s=0.5, reconcile_s=0.1, shutdown_s=10, nice=0)


class Installation:
    """An installation, what its clients do, and its workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = Registry(settings)
        self.jobs = Jobs(settings, self.registry.database)
        self.files = Files(settings, self.registry.database)
        add_model(self.registry)
        data = settings.home / "rfc.jsonl"
        data.write_text('{"text": "a line"}\n' * 20)
        self.file = self.files.add(data)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log_path = settings.home / "worker.log"

    def create(self, do: str = "succeed", **fields: Any) -> Job:
        metadata = {"do": do, "seconds": str(fields.pop("seconds", 0))}
        given = {"model": "tiny", "training_file": self.file.id, "recipe": ContinualRecipe()} | fields
        return self.jobs.create(request={"metadata": metadata}, **given)

    def start_worker(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        env = os.environ | self.settings.environment() | {"PYTHONPATH": str(ROOT)} | environment
        worker = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_worker.py")), *arguments],
            env=env, stdin=subprocess.PIPE, stderr=self.log_path.open("ab"), cwd=ROOT,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def wait(self, job: Job, *states: str, timeout_s: float = 60) -> Job:
        wait_until(lambda: self.jobs.get(job.id).state in (states or ("succeeded",)), job.id, timeout_s, self)
        return self.jobs.get(job.id)

    def folder(self, job: Job) -> Path:
        return self.settings.directory("jobs") / job.id

    def lives(self, job: Job) -> list[tuple[int, int]]:
        """Pid and fence of every child that began."""
        path = self.folder(job) / "lives"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), int(fence)) for pid, fence in (line.split() for line in lines)]

    def ticks(self, job: Job) -> int:
        path = self.folder(job) / "ticks"
        return path.stat().st_size if path.exists() else 0

    def consumer(self) -> int:
        """The pid of the Celery process."""
        return next(
            pid for pid, line in processes(self.workers[-1].pid) if "run_consumer" in line or "celery" in line
        )  # its title, where setproctitle is

    def valkey(self) -> int:
        return next(pid for pid, line in processes(self.workers[-1].pid) if "valkey" in line)

    def messages(self, job: Job) -> list[str]:
        return [event.message for event in self.jobs.events(job.id)]

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def redis(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=str(own_socket(self.settings)), socket_timeout=5)

    def end(self, worker: subprocess.Popen[bytes]) -> None:
        self.workers.remove(worker)
        if worker.poll() is None:
            worker.terminate()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def close(self) -> None:
        for worker in list(self.workers):
            self.end(worker)


def add_model(registry: Registry, name: str = "tiny") -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    with registry.staging() as staging:
        (staging / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (staging / "model.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2)
        )
        write_bundle(
            staging, name=name, format="safetensors", task="generate", architecture="llama", parameters=2
        )
        registry.add(staging, name)


def processes(parent: int) -> list[tuple[int, str]]:
    """Pid and command line of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append((int(path.name), line))
    return found


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(
    condition: Callable[[], bool], what: str, timeout_s: float = 60, installation: Installation | None = None
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        tail = installation.log()[-3000:] if installation else ""
        assert time.monotonic() < deadline, f"timed out: {what}\n{tail}"
        time.sleep(0.02)


@contextmanager
def new_installation(**continual: Any) -> Iterator[Installation]:
    """Of given continual settings, in a short path; its workers end with it."""
    folder = Path(tempfile.mkdtemp(prefix="elq"))
    installation = Installation(Settings(home=folder, continual=HURRIED.model_copy(update=continual)))
    try:
        yield installation
    finally:
        installation.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def installation() -> Iterator[Installation]:
    """An installation without a worker."""
    with new_installation() as made:
        yield made


@pytest.fixture(scope="module")
def shared_installation() -> Iterator[Installation]:
    """One for a module: starting its processes is most of what a test costs."""
    with new_installation() as made:
        yield made


@pytest.fixture
def running(shared_installation: Installation) -> Installation:
    """The module's installation with a worker that is alive, no other, and nothing to do."""
    for job in shared_installation.jobs.list(limit=1000):
        if not job.is_over:
            shared_installation.jobs.cancel(job.id)
    *others, last = shared_installation.workers or [None]
    for worker in others:
        shared_installation.end(worker)
    if last is None or last.poll() is not None:
        shared_installation.start_worker()
    return shared_installation


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Makes receivers of webhooks."""
    with receivers() as make:
        yield make


@pytest.fixture
def send_due(installation: Installation) -> Iterator[Callable[[], Courier]]:
    """Starts a courier, as a worker does, on connections of its own."""
    started: list[Courier] = []

    def start() -> Courier:
        started.append(Courier(Jobs(installation.settings).database, poll_s=0.05))
        started[-1].start()
        return started[-1]

    yield start
    for courier in started:
        courier.stop()


@pytest.fixture
def command(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """`everlearn` on the installation, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in installation.settings.environment().items():
        monkeypatch.setenv(name, value)

    def invoke(*arguments: str) -> Result:
        try:
            return CliRunner().invoke(app, arguments)
        finally:
            structlog.reset_defaults()  # the program logs to the runner's stderr, which is gone

    return invoke
