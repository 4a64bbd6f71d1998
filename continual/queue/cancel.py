"""Ending a job from outside: its client cancels it, or the key that made it is not valid any more.

What happens when a job is cancelled:

1. The row. :func:`cancel_job`, called by the route and by ``everlearn jobs cancel`` through ``Jobs.cancel``, makes it
   ``cancelled``, with an event, an entry of the audit log and what webhooks are to be told, in one transaction. A
   queued job never starts: who gets its message finds no queued row to claim (``Jobs.claim``).
2. The worker. Of a running job the lease ends with that. The next heartbeat (``attempt.Attempt``, every
   ``continual.heartbeat_s``) returns ``cancel``, and the child's whole process group gets SIGKILL.
3. The child. Until then it may compute, but whatever it writes raises LeaseLost (``jobs.check_lease``): a cancelled job
   promotes nothing, and puts nothing into the replay buffer.
4. What stays. The champion, the uploaded files, the row and its events. The job's folder and log go
   ``continual.keep_jobs_days`` later (``worker.Worker``).
"""

from __future__ import annotations

import time

import structlog
from sqlalchemy import ColumnElement, Connection, select, update

from continual.queue.states import KEY_ENDED, Job, add_event, is_unfinished
from continual.webhooks.outbox import announce_end
from everlearn.errors import InvalidInput
from everlearn.registry.audit import record
from everlearn.registry.keys import why_ended
from everlearn.registry.tables import JobRow

log = structlog.stdlib.get_logger("continual.jobs")


def cancel_job(connection: Connection, job: Job, actor: str | None) -> None:
    """Makes a job ``cancelled``; once more changes nothing. Raises InvalidInput where it ended otherwise.

    ``actor``: who does it, as :func:`everlearn.registry.audit.record` takes it.
    """
    if job.state in ("succeeded", "failed"):
        raise InvalidInput(f"{job.id} has {job.state} already and cannot be cancelled", param="job")
    if job.state == "cancelled":
        return
    now = time.time()
    ended = {"state": "cancelled", "cancel_requested_at": now, "finished_at": now}
    connection.execute(update(JobRow).where(JobRow.id == job.id).values(ended))
    add_event(connection, job.id, "Fine-tuning job cancelled")
    announce_end(connection, job.id, job.key_id, "cancelled")
    record(connection, actor, "job.cancel", job.id, was=job.state)
    log.info("job cancelled", job=job.id, was=job.state)


def end_without_key(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    """Of ``which``, the unfinished ones whose key has ended; returns their ids."""
    ended: list[str] = []
    for job_id, key_id in connection.execute(
        select(JobRow.id, JobRow.key_id).where(is_unfinished(), which)
    ).all():
        if why := why_ended(connection, key_id):
            error = {"code": KEY_ENDED, "message": f"the job was ended, since {why}", "param": None}
            values = {"state": "failed", "error": error, "finished_at": time.time()}
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(values))
            add_event(connection, job_id, error["message"], {"code": KEY_ENDED}, "error")
            announce_end(connection, job_id, key_id, "failed")
            log.warning("job ended", job=job_id, reason=why)
            ended.append(job_id)
    return ended
