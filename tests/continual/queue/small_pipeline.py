"""The child of these tests: real processes with real leases, that do as their job's metadata says and no training."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from continual.queue.jobs import Jobs
from continual.queue.states import Lease, LeaseLost
from everlearn.errors import Conflict, InvalidInput
from everlearn.processes.child import answer
from everlearn.progress import Progress
from everlearn.settings import Settings


def run(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    settings = Settings(**request["settings"])
    lease = Lease(request["job_id"], request["fence"], request["owner"])
    jobs = Jobs(settings)
    job = jobs.get(lease.job_id)
    do = job.request.get("metadata") or {}
    folder = settings.directory("jobs") / job.id
    folder.mkdir(exist_ok=True)
    with (folder / "lives").open("a") as lives:
        lives.write(f"{os.getpid()} {lease.fence}\n")
    if do.get("do") == "leave":
        return {"state": "unfinished"}
    try:
        _act(do.get("do", "succeed"), float(do.get("seconds", "0")), folder, jobs, lease, progress)
        jobs.finish(lease, "succeeded", result_model=f"{job.model}@1", trained_tokens=7, report={"ok": True})
    except LeaseLost as error:
        (folder / "refused").write_text(str(lease.fence))
        raise Conflict(error.message) from error
    return {"state": "succeeded"}


def _act(do: str, seconds: float, folder: Path, jobs: Jobs, lease: Lease, progress: Progress) -> None:
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "refuse":
        raise InvalidInput("line 3 holds no answer", param="training_file")
    if do == "crash":
        raise RuntimeError("this flaw is a test's")
    if do == "full":
        raise OSError(28, os.strerror(28))
    if do == "work":
        _work(seconds, folder, jobs, lease, progress)


def _work(seconds: float, folder: Path, jobs: Jobs, lease: Lease, progress: Progress) -> None:
    """``seconds`` of ticks that are kept, so that a later life goes on; SIGTERM ends it after the tick."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    ticks = folder / "ticks"
    while (done := len(ticks.read_bytes()) if ticks.exists() else 0) < seconds * 20:
        with ticks.open("ab") as stream:
            stream.write(b".")
        progress("working", done / (seconds * 20))
        if done % 10 == 0:
            jobs.event(lease, f"Step {done}", {"step": done, "train_loss": 1.0})
        if asked.is_set():
            (folder / "checkpoint").touch()
            sys.exit(0)
        time.sleep(0.05)


if __name__ == "__main__":
    answer(run)
