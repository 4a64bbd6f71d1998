"""The files and fine-tuning API, as the stock client drives it; the queue behind it is tested with its worker."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from continual.queue.files import RESULTS, Files, insert_file
from continual.queue.jobs import Jobs, finish_within
from everlearn.registry.database import write
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from tests.continual.queue.conftest import add_model
from tests.serve.gateway.conftest import RunningGateway, resident_mb

LINES = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 10
LIMIT_BYTES = 8 * 1024**2


@pytest.fixture(scope="module")
def door(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """A gateway without keys, whose files may have 8 MiB, before a home with the model `m`."""
    os.environ["EVERLEARN_CONTINUAL__MAX_FILE_BYTES"] = str(LIMIT_BYTES)
    try:
        running = start_gateway()
    finally:
        del os.environ["EVERLEARN_CONTINUAL__MAX_FILE_BYTES"]
    add_model(Registry(running.settings), "m")
    running.add_engine("m")
    yield running


@pytest.fixture(scope="module")
def client(door: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def training_file(client: openai.OpenAI) -> FileObject:
    return client.files.create(file=("Régles/../my rfcs.jsonl", LINES), purpose="fine-tune")


def create(client: openai.OpenAI, file: FileObject, **fields: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(**({"model": "m", "training_file": file.id} | fields))


def refused(door: RunningGateway, status: int, param: str | None, **fields: Any) -> str:
    response = door.client.post("/v1/fine_tuning/jobs", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    return error["message"]


def test_a_file_too_small_to_measure_by_is_refused_by_name_before_it_is_queued(
    client: openai.OpenAI, door: RunningGateway
) -> None:
    few = client.files.create(file=("few.jsonl", LINES[: len(LINES) // 2]), purpose="fine-tune")
    told = refused(door, 400, "training_file", model="m", training_file=few.id)
    assert told.startswith("few.jsonl holds 5 documents, and a job takes at least 8: 4 are held out")


def test_the_stock_client_uploads_lists_reads_and_deletes(
    client: openai.OpenAI, door: RunningGateway
) -> None:
    file = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    assert (file.bytes, file.filename, file.status) == (len(LINES), "a.jsonl", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == LINES
    assert file in client.files.list(purpose="fine-tune").data
    assert client.files.wait_for_processing(file.id) == file
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert not (door.settings.home / "files" / file.id).exists()


def test_a_filename_is_a_name_and_never_a_path(training_file: FileObject, door: RunningGateway) -> None:
    assert training_file.filename == "my rfcs.jsonl"
    assert (door.settings.home / "files" / training_file.id).read_bytes() == LINES


def test_the_stock_client_creates_follows_and_cancels_a_job(
    client: openai.OpenAI, training_file: FileObject
) -> None:
    job = create(
        client, training_file, suffix="My Domain", seed=7, metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}}},
        extra_body={"everlearn": {"sequence_tokens": 128, "gate": {"min_gain": 0.5}}},
    )  # fmt: skip
    assert (job.status, job.model, job.seed, job.metadata) == ("queued", "m", 7, {"team": "a"})
    assert job.hyperparameters.to_dict() == {
        "n_epochs": 3,
        "batch_size": 4,
        "learning_rate_multiplier": 0.5,
    }
    assert job.method and job.method.type == "supervised"
    recipe = job.to_dict()["everlearn"]["recipe"]
    assert (recipe["domain"], recipe["batch_tokens"], recipe["gate"]["min_gain"]) == ("my-domain", 512, 0.5)
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert client.fine_tuning.jobs.list(metadata={"team": "a"}).data == [job]
    with pytest.raises(openai.ConflictError, match="still needs"):
        client.files.delete(training_file.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    again = client.fine_tuning.jobs.cancel(job.id)
    assert (again.status, again.fine_tuned_model) == ("cancelled", None)
    assert again.finished_at is not None
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages == ["Fine-tuning job cancelled", f"Created fine-tuning job: {job.id}"]
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_the_stock_client_pauses_and_resumes_a_job(
    client: openai.OpenAI, training_file: FileObject, door: RunningGateway
) -> None:
    job = create(client, training_file)
    paused = client.fine_tuning.jobs.pause(job.id)
    assert paused.status == "paused" and paused.to_dict()["everlearn"]["pause_requested_at"]  # type: ignore[comparison-overlap]
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    jobs = Jobs(door.settings)
    lease = jobs.claim(job.id, "test")
    assert lease
    jobs.heartbeat(lease, {"step": "training", "done": 0.5, "finish": 1_000_000_000})
    assert client.fine_tuning.jobs.retrieve(job.id).estimated_finish is None
    jobs.heartbeat(lease, {"step": "training", "done": 0.5, "finish": 2_000_000_000})
    asked = client.fine_tuning.jobs.pause(job.id)
    assert (asked.status, asked.estimated_finish) == ("running", 2_000_000_000)
    assert jobs.release(lease) == "paused"
    assert client.fine_tuning.jobs.retrieve(job.id).estimated_finish is None
    client.fine_tuning.jobs.cancel(job.id)
    for act in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="has been cancelled already"):
            act(job.id)
        with pytest.raises(openai.NotFoundError):
            act("ftjob-none")


def test_a_finished_job_leaves_a_file_of_figures(
    client: openai.OpenAI, training_file: FileObject, door: RunningGateway
) -> None:
    jobs, files = Jobs(door.settings), Files(door.settings)
    lease = jobs.claim(create(client, training_file).id, "test")
    assert lease
    key_id = jobs.get(lease.job_id).key_id
    with files.uploading() as upload:
        upload.write(b"step,train_loss\n1,2.5\n")
        file = files.place(upload, "figures.csv", purpose=RESULTS, key_id=key_id)
    with write(jobs.database) as connection:
        insert_file(connection, file)
        finish_within(connection, lease, "succeeded", result_model="m@1", result_file=file.id)
    [result] = client.fine_tuning.jobs.retrieve(lease.job_id).result_files
    assert client.files.retrieve(result).purpose == "fine-tune-results"
    assert client.files.content(result).text == "step,train_loss\n1,2.5\n"


def test_lists_page_through_everything_once(
    client: openai.OpenAI, training_file: FileObject, door: RunningGateway
) -> None:
    made = [create(client, training_file, metadata={"page": "yes"}).id for _ in range(5)]
    paged = [job.id for job in client.fine_tuning.jobs.list(limit=2, extra_query={"metadata[page]": "yes"})]
    assert paged == made[::-1]
    jobs = Jobs(door.settings)
    lease = jobs.claim(made[0], "test")
    assert lease
    for step in range(7):
        jobs.event(lease, f"Step {step}", {"step": step, "train_loss": 2.5})
    events = list(client.fine_tuning.jobs.list_events(made[0], limit=3))
    steps = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert steps == [6, 5, 4, 3, 2, 1, 0] and len({event.id for event in events}) == len(events) == 9
    files = [client.files.create(file=(f"{n}.txt", b"x"), purpose="fine-tune").id for n in range(3)]
    assert [file.id for file in client.files.list(limit=2)][:3] == files[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")][-3:] == files
    for job in made:
        client.fine_tuning.jobs.cancel(job)


def test_a_finished_job_names_a_model_that_can_be_asked(
    client: openai.OpenAI, training_file: FileObject, door: RunningGateway
) -> None:
    jobs = Jobs(door.settings)
    lease = jobs.claim(create(client, training_file).id, "test")
    assert lease
    jobs.finish(lease, "succeeded", result_model="m@1", trained_tokens=640)
    job = client.fine_tuning.jobs.retrieve(lease.job_id)
    assert (job.status, job.trained_tokens, job.error) == ("succeeded", 640, None)
    for model in (job.fine_tuned_model or "", "m"):
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content
    assert client.models.retrieve(job.fine_tuned_model or "").id == "m"
    with pytest.raises(openai.BadRequestError, match="has succeeded already"):
        client.fine_tuning.jobs.cancel(job.id)


def test_a_failed_job_says_why_and_with_what_figures(
    client: openai.OpenAI, training_file: FileObject, door: RunningGateway
) -> None:
    jobs = Jobs(door.settings)
    lease = jobs.claim(create(client, training_file).id, "test")
    assert lease
    refusal = {"code": "gate_refused", "message": "the gain is too small"}
    jobs.finish(lease, "failed", error=refusal, report={"gain": 0.001})
    job = client.fine_tuning.jobs.retrieve(lease.job_id)
    assert job.status == "failed" and job.error
    assert (job.error.code, job.error.message, job.error.param) == (*refusal.values(), None)
    assert job.to_dict()["everlearn"]["report"] == {"gain": 0.001}
    assert client.fine_tuning.jobs.list_events(job.id, limit=1).data[0].level == "error"


def test_what_cannot_be_right_is_refused_by_name(door: RunningGateway, training_file: FileObject) -> None:
    good = {"model": "m", "training_file": training_file.id}
    supervised = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}
    refused(door, 404, "model", **good | {"model": "nope"})
    refused(door, 400, "model", **good | {"model": "../../etc/passwd"})
    refused(door, 404, "training_file", **good | {"training_file": "file-nope"})
    refused(door, 404, "validation_file", **good, validation_file="file-nope")
    assert "did you mean 'suffix'" in refused(door, 400, "sufix", **good, sufix="x")
    assert "n_epochs" in refused(
        door, 400, "method.supervised.hyperparameters.n_epochs", **good, method=supervised
    )
    assert "supported: supervised" in refused(door, 400, "method.type", **good, method={"type": "dpo"})
    assert "did you mean 'replay'" in refused(door, 400, "everlearn.repaly", **good, everlearn={"repaly": {}})
    misspelt = {"gate": {"min_gian": 1}}
    assert "min_gain" in refused(door, 400, "everlearn.gate.min_gian", **good, everlearn=misspelt)
    refused(door, 400, "everlearn.epochs", **good, everlearn={"epochs": "many"})
    refused(door, 400, "metadata", **good, metadata={str(n): "" for n in range(17)})
    refused(door, 400, "seed", **good, seed=-1)
    refused(door, 400, "integrations", **good, integrations=[{"type": "wandb"}])
    for query in ("limit=0", "limit=101", "limit=x", "after=ftjob-nope"):
        assert door.client.get(f"/v1/fine_tuning/jobs?{query}").status_code in (400, 404)
    for path in ("", "/cancel", "/events", "/checkpoints"):
        method = door.client.post if path == "/cancel" else door.client.get
        assert method(f"/v1/fine_tuning/jobs/ftjob-nope{path}").status_code == 404


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "vision"}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "fine-tune"}, {"other": ("a", b"x")}, 400, None),
        ({"purpose": "fine-tune"}, {"file": ("a", b"")}, 400, "file"),
        ({"purpose": "x" * 5000}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "fine-tune"}, {"file": ("a", b"x" * (LIMIT_BYTES + 1))}, 413, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a", b"x" * (LIMIT_BYTES + 2**20))}, 413, None),
    ],
)
def test_an_upload_that_cannot_be_right_leaves_nothing(
    door: RunningGateway, data: Any, files: Any, status: int, param: str | None
) -> None:
    before = sorted((door.settings.home / "files").iterdir())
    response = door.client.post("/v1/files", data=data, files=files)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert sorted((door.settings.home / "files").iterdir()) == before


def test_an_upload_must_be_a_whole_form(door: RunningGateway) -> None:
    send = door.client.post
    assert send("/v1/files", json={"purpose": "fine-tune"}).status_code == 415
    kind = {"content-type": "multipart/form-data; boundary=b"}
    broken = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'
    assert send("/v1/files", content=broken, headers=kind).status_code == 400
    assert send("/v1/files", content=b"nonsense", headers=kind).status_code == 400
    assert send("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400


def test_a_file_is_streamed_to_disk_and_stopped_at_the_limit(door: RunningGateway) -> None:
    """Chunked, so that no length announces it."""
    lines = b"a line of text\n" * (LIMIT_BYTES // 15 + 1)
    usual = door.client.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.txt", lines[:LIMIT_BYTES])}
    )
    assert usual.json()["bytes"] == LIMIT_BYTES
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield head
        while sent < 40 * LIMIT_BYTES:
            sent += 2**18
            yield b"x" * 2**18

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with contextlib.suppress(httpx2.TransportError):  # the server may stop reading before the client sent all
        assert door.client.post("/v1/files", content=chunks(), headers=headers).status_code == 413
    assert door.client.get("/health").status_code == 200
    assert not list((door.settings.home / "files").glob(".partial*"))
    assert resident_mb(door.process.pid) < 150


def test_a_client_that_goes_away_leaves_no_bytes(door: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", door.port)) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
        )
        time.sleep(0.3)
    deadline = time.monotonic() + 10
    while list((door.settings.home / "files").glob(".partial*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_same_idempotency_key_makes_one_job(
    door: RunningGateway, client: openai.OpenAI, training_file: FileObject
) -> None:
    """At once and later; another request under the same Idempotency-Key is refused."""
    made: list[str] = []

    def one() -> None:
        made.append(create(client, training_file, extra_headers={"Idempotency-Key": "k-1"}).id)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one()
    assert len(made) == 9 and len(set(made)) == 1
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        create(client, training_file, seed=3, extra_headers={"Idempotency-Key": "k-1"})
    client.fine_tuning.jobs.cancel(made[0])


def test_each_key_sees_only_its_own_and_teaches_only_its_models(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """Another client's file or job does not exist for it."""
    running = start_gateway()
    add_model(Registry(running.settings), "m")
    local = Files(running.settings).add(Path(__file__))
    one, other, scoped = (
        openai.OpenAI(
            base_url=f"{running.url}/v1",
            max_retries=0,
            api_key=create_key(running.db, name, models, train=True)[0],
        )
        for name, models in (("one", None), ("other", None), ("scoped", ["else"]))
    )
    time.sleep(0.5)
    file = one.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    job = create(one, file)
    assert [mine.id for mine in one.files.list()] == [file.id]
    for foreign in (other, scoped):
        assert list(foreign.files.list()) == [] == list(foreign.fine_tuning.jobs.list())
        for attempt in (
            lambda: foreign.files.retrieve(file.id),  # noqa: B023
            lambda: foreign.files.content(file.id),  # noqa: B023
            lambda: foreign.files.delete(file.id),  # noqa: B023
            lambda: foreign.files.retrieve(local.id),  # noqa: B023
            lambda: foreign.fine_tuning.jobs.retrieve(job.id),  # noqa: B023
            lambda: foreign.fine_tuning.jobs.cancel(job.id),  # noqa: B023
            lambda: foreign.fine_tuning.jobs.list_events(job.id),  # noqa: B023
            lambda: foreign.files.list(after=file.id),  # noqa: B023
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
    with pytest.raises(openai.NotFoundError):
        create(other, file)
    mine = scoped.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    with pytest.raises(openai.PermissionDeniedError):
        create(scoped, mine)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="no", max_retries=0).files.list()
    assert one.fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_only_keys_that_may_train_create_jobs(start_gateway: Callable[..., RunningGateway]) -> None:
    """A job can move the version that all are served, so a key for asking is not enough; nor does it say more."""
    running = start_gateway()
    add_model(Registry(running.settings), "m")
    plain, trainer, admin = (
        openai.OpenAI(
            base_url=f"{running.url}/v1", max_retries=0, api_key=create_key(running.db, name, **rights)[0]
        )
        for name, rights in (("plain", {}), ("trainer", {"train": True}), ("admin", {"admin": True}))
    )
    time.sleep(0.5)
    file = plain.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    for model in ("m", "nope"):
        with pytest.raises(openai.PermissionDeniedError, match="--train"):
            plain.fine_tuning.jobs.create(model=model, training_file=file.id)
    assert list(plain.fine_tuning.jobs.list()) == []
    for allowed in (trainer, admin):
        mine = allowed.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
        job = create(allowed, mine, extra_body={"everlearn": {"promote": False}})
        assert job.to_dict()["everlearn"]["recipe"]["promote"] is False


def test_where_nobody_trains_a_job_is_refused_with_the_reason(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_CONTINUAL__WORKER", "off")
    running = start_gateway()
    response = running.client.post("/v1/fine_tuning/jobs", json={"model": "m", "training_file": "f"})
    assert response.status_code == 503
    assert "EVERLEARN_CONTINUAL__WORKER" in response.json()["error"]["message"]
    assert running.client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_the_gateway_loads_no_library_that_trains_or_queues() -> None:
    heavy = "celery kombu redis torch numpy transformers onnxruntime peft"
    code = f"import sys, serve.gateway.app; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


RANGES = {
    "apart": ",".join(f"{2 * at}-{2 * at}" for at in range(10_000)),
    "overlapping": ",".join(["0-"] * 10_000),
    "backwards": ",".join(f"-{at}" for at in range(1, 10_000)),
    "no numbers": ",".join(["a-b"] * 10_000),
    "one that is long": "0-" + "9" * 50_000,
    "as many as are answered": ",".join(f"{9 * at}-{9 * at}" for at in range(100)),
}


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_ranges_without_number_cost_no_more_than_the_file(
    door: RunningGateway, training_file: FileObject, ranges: str
) -> None:
    process = psutil.Process(door.process.pid)
    url, sent = f"/v1/files/{training_file.id}/content", {"range": f"bytes={ranges[:60_000]}"}
    cpu_s = [sum(process.cpu_times()[:2])]
    for _ in range(5):
        answer = door.client.get(url, headers=sent)
        cpu_s.append(sum(process.cpu_times()[:2]))
    assert min(after - before for before, after in pairwise(cpu_s)) < 0.05
    assert answer.status_code in (200, 206, 400, 416)
    assert len(answer.content) < 2 * len(LINES) + 100 * 200


def test_one_range_is_answered(door: RunningGateway, training_file: FileObject) -> None:
    answer = door.client.get(f"/v1/files/{training_file.id}/content", headers={"range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, LINES[5:10])
