"""A real run, by a user whose umask and home are open to all: what it leaves is private, and tells no secret.

Words that appear nowhere else stand for what people ask, teach and upload; and there is the key.
"""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from continual.demo.texts import DOMAINS, write_domain
from tests.e2e.test_tracing import Receiver
from tests.support.circle import MODEL, QUICK, READY_S, RECIPE
from tests.support.serve.supervised import REAL, eventually, supervised
from tests.support.tiny_models import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

ASKED, TAUGHT, QUEUED = "zanzibarquestion", "zanzibarlesson", "zanzibarbatch"
DONE_S = 240.0


@dataclass(frozen=True)
class Run:
    """What is left of it: the home, what was printed, the traces, and the secrets that nothing may hold."""

    home: Path
    output: str
    traces: list[bytes]
    key: str
    input_files: set[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Import, compress, serve; answers, refusals, an upload, a batch, a job that succeeds and one that fails."""
    before = os.umask(0)
    home = tmp_path_factory.mktemp("secrets") / "home"
    home.mkdir(mode=0o755)
    write_llama(home.parent / "tiny-hf")
    everlearn(home, "import", str(home.parent / "tiny-hf"), "--name", MODEL)
    everlearn(home, "compress", MODEL, "--to", "int8-onnx")
    key = everlearn(home, "keys", "create", "tests", "--train").split()[0]
    receiver = Receiver()
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.http.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with supervised(home, MODEL, command=REAL, **QUICK, **tracing) as server:  # type: ignore[arg-type]
        server.ready(READY_S)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            files = work(client)
        assert server.end(within_s=60) == 0
        output = server.output
    receiver.http.shutdown()
    os.umask(before)
    yield Run(home, output, receiver.bodies, key, files)


def everlearn(home: Path, *arguments: str) -> str:
    environment = os.environ | {"EVERLEARN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "everlearn", *arguments],
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def work(client: openai.OpenAI) -> set[str]:
    """Returns the ids of the files that were uploaded, which hold what they hold."""
    said: Any = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 4}
    client.chat.completions.create(**said)
    list(client.chat.completions.create(**said, stream=True))
    for wrong in ({"model": ASKED}, {"temperature": ASKED}, {"extra_body": {ASKED: 1}}):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**said | wrong)
    line = {"custom_id": QUEUED, "method": "POST", "url": "/v1/chat/completions"}
    body = said | {"messages": [{"role": "user", "content": QUEUED}]}
    file = client.files.create(file=("b.jsonl", json.dumps(line | {"body": body}).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    eventually(lambda: client.batches.retrieve(batch.id).status == "completed")
    text = lesson()
    good = client.files.create(file=("lesson.jsonl", text), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("broken.jsonl", text + b'{"text": 5}\n'), purpose="fine-tune")
    assert TAUGHT not in str(refused.value)
    same = 20 * (text.splitlines()[0] + b"\n")
    bad = client.files.create(file=("same.jsonl", same), purpose="fine-tune")
    ends = [follow(client, one.id) for one in (good, bad)]
    assert ends == ["succeeded", "failed"]
    return {file.id, good.id, bad.id, str(client.batches.retrieve(batch.id).output_file_id)}


def lesson() -> bytes:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"lesson-{os.getpid()}.jsonl"
    write_domain(next(one for one in DOMAINS if one.name == "scripture"), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return "".join(
        json.dumps({"text": f"{TAUGHT} {next(iter(line.values()))}"}) + "\n" for line in lines
    ).encode()


def follow(client: openai.OpenAI, file: str) -> str:
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, metadata={"team": "a"}, extra_body={"everlearn": RECIPE}
    )
    deadline = time.monotonic() + DONE_S
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    for event in client.fine_tuning.jobs.list_events(job.id, limit=100):
        assert TAUGHT not in event.model_dump_json()
    assert TAUGHT not in job.model_dump_json(), (
        "neither the job's errors nor its spec tell what it was taught"
    )
    return job.status


def test_nobody_else_can_read_anything_that_was_left(run: Run) -> None:
    found = [
        f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(run.home)}"
        for path in run.home.rglob("*")
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]
    assert found == []
    assert {path.name for path in run.home.iterdir()} >= {"everlearn.db", "store", "files", "jobs", "run"}


def test_the_key_is_nowhere(run: Run) -> None:
    for place, data in left(run):
        for secret in (run.key, run.key[3:]):
            assert secret.encode() not in data, place


def test_prompts_and_lessons_are_only_in_the_files_that_were_uploaded_and_in_the_database(run: Run) -> None:
    """The database has the replay buffer, as tokens; answers of batches are files, once they are complete."""
    for place, data in left(run):
        if place.removeprefix("files/") in run.input_files:
            continue
        for word in (ASKED, TAUGHT, QUEUED):
            assert word.encode() not in data, (place, word)


def left(run: Run) -> Iterator[tuple[str, bytes]]:
    yield "output", run.output.encode()
    yield from (("traces", body) for body in run.traces)
    assert run.traces
    for path in run.home.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(run.home)), path.read_bytes()
