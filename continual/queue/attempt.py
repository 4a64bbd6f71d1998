"""One attempt at a job: claim it, let a child do the work, keep the lease meanwhile, and say how it ended.

The child writes what it has done and the job's end itself, under the lease; what is decided here is only what
becomes of a job whose child did not come to its end.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, cast

import structlog

from continual.queue.child import LEASE_PIPE
from continual.queue.jobs import Jobs
from continual.queue.owner import this_process
from continual.queue.states import Lease, LeaseLost, State
from everlearn.errors import Unavailable
from everlearn.processes.program import QUIET, describe_death, environment, python

PIPELINE = "continual.pipeline"
POLL_S = 0.2
PACE_S = 100.0
"""How long a job goes on is told by how far it came in so much time: steps found done say nothing of those to come."""
WORTH_ANOTHER = frozenset({"Unavailable", "EverlearnError"})
"""What a child may fail of and do better next time; any other error of ours would come again."""
NO_SPACE = os.strerror(errno.ENOSPC)

log = structlog.stdlib.get_logger("continual.queue")


def run_job(jobs: Jobs, job_id: str, stopping: threading.Event, *, module: str = PIPELINE) -> State | None:
    """Attempts a job, if it is there to be had, and returns what became of it; None where it was not.

    Once ``stopping`` is set the child is asked to end at a point that it can go on from.
    """
    if stopping.is_set():
        return None
    before_s = time.monotonic()
    lease = jobs.claim(job_id, this_process())
    if lease is None:
        log.info("not claimed", job=job_id, note="it is over, or another's: a message said so twice")
        return None
    attempt = Attempt(jobs, lease, module, before_s)
    try:
        ending = attempt.run(stopping)
    finally:
        attempt.kill()
    return ending


class Attempt:
    """A child at work, and the lease that it works under."""

    def __init__(self, jobs: Jobs, lease: Lease, module: str, claimed_s: float) -> None:
        self.jobs = jobs
        self.lease = lease
        self._limits = jobs.settings.continual
        self._until_s = claimed_s + self._limits.lease_s  # by this machine's monotonic clock
        self._next_beat_s = claimed_s + self._limits.heartbeat_s
        self._progress: dict[str, Any] | None = None
        self._pace: deque[tuple[float, float]] = deque()
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stop_asked_s: float | None = None
        self._pausing = False
        self._log_path = jobs.settings.directory("jobs") / f"{lease.job_id}.log"
        self._child, self._lease_pipe = self._start(module)
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, stopping: threading.Event) -> State | None:
        """Until the child has ended, or must."""
        while True:
            verdict = self._keep_lease()
            self._pausing = self._pausing or verdict == "pause"
            if verdict in ("cancel", "lost"):
                log.info("the child is ended", job=self.lease.job_id, lease=verdict)
                return "cancelled" if verdict == "cancel" else None
            if stopping.is_set() or self._pausing:
                self._ask_to_stop()
            try:
                message = self._said.get(timeout=POLL_S)
            except queue.Empty:
                if self._child.poll() is not None:
                    self._signal_all()  # what it left behind may hold its end of the pipe open
                continue
            if message is None or "error" in message or "result" in message:
                return self._end(message)
            self._note(message.get("step"), message.get("done"))

    def _note(self, step: Any, done: Any) -> None:
        """How far it is, and once that can be told, ``finish``: when it will be done, in seconds since 1970."""
        self._progress = {"step": step, "done": done}
        if not isinstance(done, int | float):
            return
        now_s = time.monotonic()
        self._pace.append((now_s, float(done)))
        while now_s - self._pace[0][0] > PACE_S:
            self._pace.popleft()
        (since_s, before), (_, after) = self._pace[0], self._pace[-1]
        if now_s - since_s >= PACE_S / 10 and after > before:
            left_s = (now_s - since_s) * (1 - after) / (after - before)
            self._progress["finish"] = round(time.time() + left_s)

    def kill(self) -> None:
        """The child and all that it started, at once."""
        self._signal_all()
        self._child.wait()
        os.close(self._lease_pipe)

    def _signal_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _start(self, module: str) -> tuple[subprocess.Popen[str], int]:
        settings = self.jobs.settings
        reads, writes = os.pipe()
        added = settings.environment() | QUIET | {
            "PYTHONUNBUFFERED": "1",
            LEASE_PIPE: f"{reads},{self._until_s},{self._limits.nice}",
        }  # fmt: skip
        if self._limits.threads:
            added["OMP_NUM_THREADS"] = str(self._limits.threads)
        with self._log_path.open("ab") as written:
            child = subprocess.Popen(
                python("continual.queue.child", module),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, text=True,
                env=environment(**added), pass_fds=[reads], start_new_session=True,
            )  # fmt: skip
        os.close(reads)
        stdin = cast("IO[str]", child.stdin)
        request = self.lease.__dict__ | {"settings": settings.model_dump(mode="json")}
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        return child, writes

    def _listen(self) -> None:
        """What the child says, a JSON line each; None at its end."""
        for line in cast("IO[str]", self._child.stdout):
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                self._said.put(cast("dict[str, Any]", message))
        self._said.put(None)

    def _keep_lease(self) -> str:
        """A heartbeat when it is due. A database that does not answer for too long costs the lease, too."""
        now_s = time.monotonic()
        if now_s < self._next_beat_s:
            return "go"
        try:
            verdict = self.jobs.heartbeat(self.lease, self._progress)
        except Unavailable as error:
            log.warning("no heartbeat", job=self.lease.job_id, error=error.message)
            self._next_beat_s = now_s + min(1.0, self._limits.heartbeat_s)
            return "go" if time.monotonic() < self._until_s else "lost"
        if verdict in ("go", "pause"):
            self._until_s = now_s + self._limits.lease_s
            self._next_beat_s = now_s + self._limits.heartbeat_s
            with suppress(BrokenPipeError):
                os.write(self._lease_pipe, f"{self._until_s}\n".encode())
        return verdict

    def _ask_to_stop(self) -> None:
        if self._stop_asked_s is None:
            self._stop_asked_s = time.monotonic()
            self._child.terminate()
        elif time.monotonic() - self._stop_asked_s > self._limits.shutdown_s:
            self._signal_all()

    def _end(self, message: Mapping[str, Any] | None) -> State | None:
        """The child has said its last word, or has ended without one: the row tells which end it came to."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(5 if message else None)
        job = self.jobs.get(self.lease.job_id)
        if job.is_over or job.fence != self.lease.fence:
            return job.state if job.fence == self.lease.fence else None
        if self._stop_asked_s is not None:
            return self.jobs.release(self.lease)
        if message and "error" in message and message["error"] not in WORTH_ANOTHER:
            return self._fail(message)
        reason = str(message["message"]) if message and "error" in message else self._describe_death(message)
        if NO_SPACE in reason:
            return self._fail({"code": "disk_full", "message": reason})
        return self.jobs.retry(self.lease, reason)

    def _fail(self, message: Mapping[str, Any]) -> State | None:
        error = {
            "code": message.get("code") or _snake(str(message["error"])),
            "message": message["message"],
            "param": message.get("param"),
        }
        try:
            self.jobs.finish(self.lease, "failed", error=error)
        except LeaseLost:
            return None
        return "failed"

    def _describe_death(self, message: Mapping[str, Any] | None) -> str:
        if message is not None:
            return "the child returned and left the job unfinished"
        with self._log_path.open("rb") as written:
            return describe_death("the child", self._child.returncode, written)


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
