"""The whole loop with a tiny model: a file uploaded, a job followed, the new champion answering."""

import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import openai
import psutil
from sqlalchemy import select

from continual.demo.texts import DOMAINS, write_domain
from everlearn.importing.sources import import_model
from everlearn.registry.database import read
from everlearn.registry.registry import Registry
from everlearn.registry.tables import ReplayExampleRow, ReplayInsertionRow
from everlearn.settings import Settings
from tests.support.serve.supervised import REAL, Supervised, supervised
from tests.support.tiny_models import write_llama

MODEL = "tiny"
READY_S = 120.0
CIRCLE_S = 240.0
RECIPE = {
    "domain": "scripture",
    "held_fraction": 0.25,
    "lr": 1e-2,
    "epochs": 2,
    "batch_tokens": 512,
    "sequence_tokens": 128,
    "checkpoint_every_s": 0.2,
    "replay": {"held_tokens": 1024},
    "generation": {"tokens": 1024, "sample_tokens": 64},
    # The random model knows nothing that could be kept: here it is the machinery that is tested.
    "gate": {"max_forgetting": 10.0},
}
QUICK = {
    "EVERLEARN_CONTINUAL__WORKER": "on",
    "EVERLEARN_CONTINUAL__LEASE_S": "5",
    "EVERLEARN_CONTINUAL__HEARTBEAT_S": "0.5",
    "EVERLEARN_CONTINUAL__RECONCILE_S": "0.2",
    "EVERLEARN_CONTINUAL__MAX_ATTEMPTS": "10",
    "EVERLEARN_CONTINUAL__THREADS": "1",
    "EVERLEARN_ONNX__THREADS": "1",
}
PARTS = {
    "worker": "continual.queue.worker",
    "engine": "serve.engines.onnx",
    "gateway": "serve.gateway",
    "valkey": "valkey-server",
}
"""What is killed, and a word of its command line."""


@dataclass(frozen=True)
class Result:
    """What a circle left behind: nothing in it may depend on a kill."""

    job: dict[str, object]
    weights: dict[str, str]
    versions: int
    buffer: list[tuple[str, str, str, int]]
    insertions: int
    completions: int
    answer: str


def make_home(home: Path) -> None:
    """A home whose champion is a tiny INT8 model, with its float parent."""
    from compress.export import export_onnx

    source = home.parent / "tiny-hf"
    write_llama(source)
    settings = Settings(home=home)
    import_model(settings, str(source), name=MODEL)
    export_onnx(settings, MODEL, "int8-onnx")


@contextmanager
def served(base_home: Path, home: Path) -> Iterator[Supervised]:
    """A server on a copy of ``base_home``."""
    shutil.copytree(base_home, home)
    with supervised(home, MODEL, command=REAL, **QUICK) as server:  # type: ignore[arg-type]
        yield server.ready(READY_S)


def go_round(server: Supervised, home: Path) -> Result:
    """The circle by the stock client alone; it tries again where a connection breaks, as any client does."""
    file = home.parent / f"{home.name}.jsonl"
    write_domain(next(one for one in DOMAINS if one.name == "scripture"), file)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=8, timeout=30) as client:
        uploaded = client.files.create(file=file, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=uploaded.id,
            extra_body={"everlearn": RECIPE},
            extra_headers={"Idempotency-Key": home.name},
        )
        deadline = time.monotonic() + CIRCLE_S
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, f"{job}\n{server.output}"
            time.sleep(0.2)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", f"{job.error}\n{server.output}"
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        completions = sum(event.message == "The job has successfully completed" for event in events)
        answer = _answer(client, str(job.fine_tuned_model))
    return Result(job.model_dump(), *_registered(home), *_kept(home), completions=completions, answer=answer)


def _answer(client: openai.OpenAI, version: str) -> str:
    """What the new champion says, once requests for the bare name reach it."""
    deadline = time.monotonic() + 60
    while True:
        raw = client.completions.with_raw_response.create(
            model=MODEL, prompt="And God said", max_tokens=16, temperature=0
        )
        if raw.headers["x-everlearn-version"] == version:
            return raw.parse().choices[0].text
        assert time.monotonic() < deadline, f"{version} does not serve"
        time.sleep(0.2)


def _registered(home: Path) -> tuple[dict[str, str], int]:
    """The hash of every file of the champion and of its parent, and how many versions there are."""
    registry = Registry(Settings(home=home))
    champion, parent = registry.lineage(f"{MODEL}@champion")[:2]
    weights = {
        f"{version.format}/{path}": entry.sha256
        for version in (champion, parent)
        for path, entry in version.manifest.files.items()
    }
    return weights, len(registry.versions(MODEL))


def _kept(home: Path) -> tuple[list[tuple[str, str, str, int]], int]:
    table = ReplayExampleRow
    with read(Registry(Settings(home=home)).database) as connection:
        rows = connection.execute(
            select(table.sha256, table.split, table.domain, table.tokens).order_by(table.sha256, table.split)
        ).all()
        insertions = len(connection.execute(select(ReplayInsertionRow.job_id)).all())
    return [tuple(row) for row in rows], insertions


class Killer:
    """Kills each of ``PARTS`` once, at moments of the next ``within_s`` seconds that ``seed`` decides."""

    def __init__(self, server: Supervised, seed: int, within_s: float) -> None:
        chance = random.Random(seed)
        self.plan = sorted((chance.uniform(0, within_s), part) for part in PARTS)
        self.killed: list[str] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        started = time.monotonic()
        for moment, part in self.plan:
            self._over.wait(max(0.0, started + moment - time.monotonic()))
            while not self._over.is_set() and not self._kill_one(part):
                time.sleep(0.05)

    def _kill_one(self, part: str) -> bool:
        for process in self._server.family.children(recursive=True):
            try:
                if PARTS[part] in " ".join(process.cmdline()):
                    process.kill()
                    self.killed.append(part)
                    return True
            except psutil.NoSuchProcess:
                continue
        return False
