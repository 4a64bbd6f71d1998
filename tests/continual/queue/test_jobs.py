"""The table alone: claims, fences, caps and their races, on each kind of database."""

import gzip
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from continual.queue.consumer import Publisher
from continual.queue.document_count import is_one_text
from continual.queue.files import Client, Files
from continual.queue.jobs import Jobs, check_lease
from continual.queue.owner import is_gone, this_process
from continual.queue.reconciler import Reconciler
from continual.queue.states import Lease, LeaseLost
from everlearn.bundles.bundle import write_bundle
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.registry.audit import list_acts
from everlearn.registry.database import write
from everlearn.registry.keys import create_key, revoke_key
from everlearn.registry.tables import ApiKey, JobRow
from tests.continual.queue.conftest import Installation, add_model


def claimed(installation: Installation, **fields: Any) -> Lease:
    lease = installation.jobs.claim(installation.create(**fields).id, "one")
    assert lease
    return lease


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What each did, begun together; an exception as itself."""
    start, done = threading.Barrier(len(acts)), list[Any]()

    def run(act: Callable[[], Any]) -> None:
        start.wait()
        try:
            done.append(act())
        except Exception as error:  # noqa: BLE001
            done.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def test_of_many_claims_at_once_one_wins(installation: Installation) -> None:
    job = installation.create()
    leases = at_once(*(lambda n=n: Jobs(installation.settings).claim(job.id, f"w{n}") for n in range(8)))
    [won] = [lease for lease in leases if lease]
    now = installation.jobs.get(job.id)
    assert (now.state, now.fence, now.attempt, now.lease_owner) == ("running", won.fence, 1, won.owner)


def of_key(installation: Installation, **limits: Any) -> tuple[str, Client]:
    """A file of a key's own, and the key as a client."""
    _, key = create_key(installation.jobs.database, "trainer", train=True, **limits)
    client = Client(key.id)
    return installation.files.add(installation.settings.home / "rfc.jsonl", client=client).id, client


@pytest.mark.parametrize("end", ["revoked", "expired", "deleted"])
def test_jobs_end_with_the_key_that_made_them(installation: Installation, end: str) -> None:
    """Waiting ones and running ones; those of others go on."""
    database = installation.jobs.database
    file, client = of_key(installation, expires_at=time.time() + 1 if end == "expired" else None)
    queued, running, others = (
        installation.create(training_file=file, client=client),
        *(claimed(installation, **fields) for fields in ({"training_file": file, "client": client}, {})),
    )
    other_file, other = of_key(installation)
    theirs = installation.create(training_file=other_file, client=other)
    reconciler = Reconciler(installation.jobs, Publisher(installation.settings))
    assert installation.jobs.end_without_keys() == ()
    if end == "revoked":
        revoke_key(database, str(client.key_id))
    elif end == "deleted":
        with write(database) as connection:
            connection.execute(delete(ApiKey).where(ApiKey.id == client.key_id))
    else:
        time.sleep(1.1)
    with pytest.raises(LeaseLost):
        installation.jobs.finish(running, "succeeded", result_model="tiny@9")
    reconciler.reconcile()
    how = {"revoked": "was revoked", "expired": "has expired", "deleted": "was deleted"}[end]
    for job_id in (queued.id, running.job_id):
        job = installation.jobs.get(job_id)
        assert job.state == "failed" and job.error and job.error["code"] == "key_not_valid"
        assert how in job.error["message"] and how in installation.messages(job)[-1]
        assert job.finished_at
    assert installation.jobs.heartbeat(running) == "lost"
    assert installation.jobs.heartbeat(others) == "go"
    assert installation.jobs.get(theirs.id).state == "queued"


def test_a_job_whose_key_has_ended_is_never_begun(installation: Installation) -> None:
    file, client = of_key(installation)
    job = installation.create(training_file=file, client=client)
    revoke_key(installation.jobs.database, str(client.key_id))
    assert installation.jobs.claim(job.id, "one") is None
    assert installation.jobs.get(job.id).state == "failed"


def test_a_stale_fence_writes_nothing(installation: Installation) -> None:
    """The first holder was thought dead, and comes back while the second works."""
    stale = claimed(installation)
    assert installation.jobs.retry(stale, "silent") == "queued"
    fresh = installation.jobs.claim(stale.job_id, "two")
    assert fresh and fresh.fence == stale.fence + 1
    before = installation.jobs.get(stale.job_id)
    events = installation.messages(before)
    for write_stale in (
        lambda: installation.jobs.event(stale, "late"),
        lambda: installation.jobs.finish(stale, "succeeded", result_model="tiny@9"),
        lambda: installation.jobs.finish(stale, "failed", error={"code": "x", "message": "y"}),
    ):
        with pytest.raises(LeaseLost):
            write_stale()
    assert installation.jobs.heartbeat(stale) == "lost"
    assert installation.jobs.release(stale) is None and installation.jobs.retry(stale, "late") is None
    assert installation.jobs.get(stale.job_id) == before and installation.messages(before) == events
    assert installation.jobs.heartbeat(fresh) == "go"


def test_what_is_promoted_with_a_lost_lease_is_rolled_back(installation: Installation) -> None:
    """A registration that checks its lease inside the registering transaction leaves nothing when that is stale."""
    stale = claimed(installation)
    installation.jobs.cancel(stale.job_id)
    with installation.registry.staging() as staging, pytest.raises(LeaseLost):
        (staging / "config.json").write_text("{}")
        write_bundle(staging, name="tiny", format="onnx", task="generate", architecture="x", parameters=1)
        installation.registry.add(staging, "tiny", within=lambda connection, _: _check(connection, stale))
    assert [version.version for version in installation.registry.versions("tiny")] == [1]
    assert installation.registry.aliases("tiny") == {}


def _check(connection: Any, lease: Lease) -> None:
    check_lease(connection, lease)


def test_finish_and_what_comes_with_it_are_one_transaction(installation: Installation) -> None:
    lease = claimed(installation)

    def fail(_: Any) -> None:
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError):
        installation.jobs.finish(lease, "succeeded", within=fail)
    assert installation.jobs.get(lease.job_id).state == "running"
    installation.jobs.finish(lease, "succeeded", result_model="tiny@1")
    assert installation.messages(installation.jobs.get(lease.job_id))[-2:] == [
        "New fine-tuned model created: tiny@1",
        "The job has successfully completed",
    ]


@pytest.mark.parametrize("attempt", range(6))
def test_cancel_and_finish_at_once_leave_one_end(installation: Installation, attempt: int) -> None:
    """Whichever comes first, the other is told, and nothing changes any more."""
    lease = claimed(installation)
    done = at_once(
        lambda: installation.jobs.cancel(lease.job_id).state,
        lambda: Jobs(installation.settings).finish(lease, "succeeded", result_model="tiny@1"),
    )
    job = installation.jobs.get(lease.job_id)
    assert len(list_acts(installation.registry.database)) == (job.state == "cancelled")
    if job.state == "cancelled":
        assert any(isinstance(one, LeaseLost) for one in done) and job.result_model is None
        assert installation.jobs.heartbeat(lease) == "cancel"
    else:
        assert job.state == "succeeded" and any(isinstance(one, InvalidInput) for one in done)
    ends = {"The job has successfully completed", "Fine-tuning job cancelled"}
    assert len(ends & set(installation.messages(job))) == 1


def test_attempts_are_counted_by_job_and_capped(installation: Installation) -> None:
    job = installation.create()
    for state in ("queued", "queued", "failed"):
        lease = installation.jobs.claim(job.id, "one")
        assert lease and installation.jobs.retry(lease, "it died") == state
    job = installation.jobs.get(job.id)
    assert job.error and job.error["code"] == "attempts_exhausted" and "it died" in job.error["message"]
    assert installation.jobs.claim(job.id, "one") is None


def test_a_worker_that_stops_in_time_costs_no_attempt(installation: Installation) -> None:
    job = installation.create()
    for _ in range(5):
        lease = installation.jobs.claim(job.id, "one")
        assert lease and installation.jobs.release(lease)
    assert (installation.jobs.get(job.id).state, installation.jobs.get(job.id).attempt) == ("queued", 0)


def test_a_queued_job_that_is_paused_is_not_begun_until_it_is_resumed(installation: Installation) -> None:
    file, client = of_key(installation)
    job = installation.create(training_file=file, client=client)
    for _ in range(2):
        assert installation.jobs.pause(job.id, client=client).state == "paused"
    assert installation.jobs.claim(job.id, "one") is None and job.id not in installation.jobs.queued()
    with pytest.raises(Conflict, match="still needs"):
        Files(installation.settings).delete(file)
    with pytest.raises(NotFound):
        installation.jobs.resume(job.id, client=Client("another"))
    for _ in range(2):
        assert installation.jobs.resume(job.id, client=client).state == "queued"
    assert installation.jobs.claim(job.id, "one")
    assert [act.act for act in list_acts(installation.registry.database)][:2] == ["job.resume", "job.pause"]
    told = ["Fine-tuning job paused", "Fine-tuning job resumed", "Fine-tuning job started"]
    assert installation.messages(job)[-3:] == told


def test_a_running_job_is_told_to_pause_and_waits_once_it_is_given_back(installation: Installation) -> None:
    lease = claimed(installation)
    job = installation.jobs.pause(lease.job_id)
    assert job.state == "running" and job.pause_requested_at
    assert installation.jobs.heartbeat(lease) == "pause"
    assert installation.jobs.resume(job.id).state == "running"
    assert installation.jobs.heartbeat(lease) == "go"
    installation.jobs.pause(job.id)
    assert installation.jobs.release(lease) == "paused"
    job = installation.jobs.get(job.id)
    assert (job.state, job.attempt) == ("paused", 0)
    assert installation.jobs.cancel(job.id).state == "cancelled"
    for act in (installation.jobs.pause, installation.jobs.resume):
        with pytest.raises(InvalidInput, match="has been cancelled already"):
            act(job.id)


def test_a_job_whose_worker_dies_while_it_pauses_is_paused(installation: Installation) -> None:
    lease = claimed(installation)
    installation.jobs.pause(lease.job_id)
    assert installation.jobs.retry(lease, "its worker is gone") == "paused"
    assert installation.jobs.resume(lease.job_id).state == "queued"
    again = installation.jobs.claim(lease.job_id, "two")
    assert again
    installation.jobs.pause(lease.job_id)
    installation.jobs.finish(again, "succeeded", result_model="tiny@1")
    job = installation.jobs.get(lease.job_id)
    assert (job.state, job.pause_requested_at) == ("succeeded", None)


def test_a_paused_job_ends_with_its_key(installation: Installation) -> None:
    file, client = of_key(installation)
    job = installation.create(training_file=file, client=client)
    installation.jobs.pause(job.id)
    revoke_key(installation.jobs.database, str(client.key_id))
    assert installation.jobs.end_without_keys() == [job.id]


def test_a_beat_after_the_look_keeps_the_lease(installation: Installation) -> None:
    lease = claimed(installation)
    seen = installation.jobs.get(lease.job_id).beats
    installation.jobs.heartbeat(lease, {"step": "training", "done": 0.5})
    assert installation.jobs.retry(lease, "silent", seen_beats=seen) is None
    job = installation.jobs.get(lease.job_id)
    assert job.state == "running" and job.progress == {"step": "training", "done": 0.5}


def test_the_same_idempotency_key_makes_one_job_of_each_client(installation: Installation) -> None:
    """Also where both ask at once."""
    made = at_once(*(lambda: installation.create(idempotency_key="k") for _ in range(8)))
    assert len({job.id for job in made}) == 1
    with pytest.raises(InvalidInput, match="this Idempotency-Key made ftjob-"):
        installation.create(idempotency_key="k", suffix="else")
    file = installation.files.add(installation.settings.home / "rfc.jsonl", client=Client("key-b"))
    other = installation.create(idempotency_key="k", client=Client("key-b"), training_file=file.id)
    assert other.id != made[0].id


def test_a_job_teaches_the_champion_and_no_other_version(installation: Installation) -> None:
    add_model(installation.registry)
    installation.registry.promote("tiny@1")
    assert installation.create(model="tiny@1").model == "tiny"
    with pytest.raises(InvalidInput, match="the champion, which is tiny@1, not tiny@2"):
        installation.create(model="tiny@2")
    with pytest.raises(NotFound, match="did you mean 'tiny'"):
        installation.create(model="tinny")


def test_a_process_is_known_by_its_start_too() -> None:
    mine = this_process()
    host, pid, started = mine.rsplit(":", 2)
    assert not is_gone(mine)
    assert is_gone(f"{host}:{pid}:{int(started) - 1}")
    assert not is_gone(f"elsewhere:{pid}:1")  # of another machine nothing is known
    assert not is_gone("nonsense")


def test_sweeping_removes_bytes_that_no_row_names_and_no_others(installation: Installation) -> None:
    orphan = installation.settings.directory("files") / "file-orphan"
    orphan.write_bytes(b"x")
    assert installation.files.sweep() == 0  # it may be on its way in
    later = orphan.stat().st_mtime + 7200
    assert installation.files.sweep(later) == 1
    assert not orphan.exists() and installation.files.path(installation.file).exists()


def test_a_clock_that_jumps_takes_no_lease(installation: Installation) -> None:
    """Row Q18: ``lease_until`` is an hour in the past, or ahead, and decides nothing."""
    lease = installation.jobs.claim(installation.create().id, this_process())
    assert lease
    reconciler = Reconciler(installation.jobs, Publisher(installation.settings))
    for jump_s in (-3600, 3600):
        with write(installation.jobs.database) as connection:
            connection.execute(update(JobRow).values(lease_until=JobRow.lease_until + jump_s))
        assert reconciler.recover() == []
    assert installation.jobs.get(lease.job_id).state == "running"


def test_jobs_are_listed_from_the_newest_in_pages(installation: Installation) -> None:
    made = [installation.create().id for _ in range(5)]
    pages: list[str] = []
    after: str | None = None
    while page := installation.jobs.list(after=after, limit=2):
        pages += [job.id for job in page]
        after = pages[-1]
    assert pages == made[::-1]
    assert installation.jobs.queued() == made


CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'


def add_file(installation: Installation, name: str, content: str | bytes) -> str:
    path = installation.settings.home / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return installation.files.add(path).id


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            f"{CHAT}\n" * 7,
            r"a\.jsonl holds 7 documents, and a job takes at least 8: 4 are held out",
        ),
        ("a.jsonl", f"\n\n{CHAT}\n\n\n\n\n\n\n\n\n", r"holds 1 document, and"),
        ("a.jsonl.gz", gzip.compress(f"{CHAT}\n".encode() * 3, mtime=0), r"holds 3 documents"),
        ("a.json", f"[{CHAT}, {CHAT}]", r"holds 2 documents"),
        ("a.csv", "prompt,completion\na,b\nc,d\n", r"holds 2 documents"),
        (
            "a.txt",
            "One.\n\nTwo.\n" * 30,
            r"holds 1 document, .*<\|endoftext\|> parts the documents of a text",
        ),
    ],
)
def test_a_file_with_too_few_documents_is_refused_where_the_job_is_made(
    installation: Installation, name: str, content: str | bytes, said: str
) -> None:
    few = add_file(installation, name, content)
    with pytest.raises(InvalidInput, match=said) as caught:
        installation.create(training_file=few)
    assert caught.value.param == "training_file"
    assert installation.create(training_file=few, validation_file=installation.file.id).state == "queued"


def test_a_validation_file_with_too_few_documents_is_refused_where_the_job_is_made(
    installation: Installation,
) -> None:
    few = add_file(installation, "v.jsonl", f"{CHAT}\n" * 3)
    with pytest.raises(
        InvalidInput, match=r"v\.jsonl holds 3 documents, and measuring .* at least 4"
    ) as caught:
        installation.create(validation_file=few)
    assert caught.value.param == "validation_file"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{CHAT}\n" * 8),
        ("a.txt", "\n<|endoftext|>\n".join(f"Text {n}." for n in range(8))),
        ("a.jsonl", "no json\n"),
        ("a.parquet", "no parquet"),
        ("bomb.jsonl.gz", gzip.compress(b"\n" * 10**8, mtime=0)),
    ],
)
def test_a_file_that_is_large_enough_or_cannot_be_told_is_left_to_the_job(
    installation: Installation, name: str, content: str | bytes
) -> None:
    assert installation.create(training_file=add_file(installation, name, content)).state == "queued"


@pytest.mark.parametrize(
    ("name", "content", "one"),
    [
        ("a.txt", b"One.\n\nTwo.\n", True),
        ("a.md.gz", gzip.compress(b"One.\n\nTwo.\n", mtime=0), True),
        ("a.txt", b"One.\n <|endoftext|>\r\nTwo.\n", False),
        ("a.jsonl", b'{"text": "One."}\n', False),
    ],
)
def test_a_text_is_one_document_where_no_line_parts_it(
    tmp_path: Path, name: str, content: bytes, one: bool
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert is_one_text(tmp_path / "file", name) == one
