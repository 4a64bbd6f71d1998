"""Brings the queue back in line with the table: lost messages are published again, lost leases taken back.

Whether a lease is lost is decided without comparing clocks: a holder raises its row's count of beats, and a row
whose count stays the same for longer than a lease, measured here by a clock that nobody can set, has lost its holder.
The holder gives up earlier, by the same kind of clock (as Kubernetes' leader election does).
"""

from __future__ import annotations

import structlog

from continual.queue.consumer import Publisher
from continual.queue.jobs import Jobs
from continual.queue.owner import SignsOfLife, is_gone
from continual.queue.states import Lease
from everlearn.errors import Unavailable

PUBLISHED_AT_ONCE = 100

log = structlog.stdlib.get_logger("continual.queue")


class Reconciler:
    """Any number of them may watch the same table."""

    def __init__(self, jobs: Jobs, publisher: Publisher) -> None:
        self.jobs = jobs
        self.publisher = publisher
        self._signs = SignsOfLife()
        self._told: set[str] = set()

    def reconcile(self) -> None:
        """Once. What does not answer is tried again the next time."""
        steps = (("end", self.jobs.end_without_keys), ("recover", self.recover), ("publish", self.publish))
        for what, step in steps:
            try:
                step()
            except Unavailable as error:
                if what not in self._told:
                    log.warning("cannot reconcile the queue", step=what, error=error.message)
                self._told.add(what)
            else:
                self._told.discard(what)

    def recover(self) -> list[str]:
        """Takes back the leases whose holders are gone or silent; returns the jobs' ids."""
        limits = self.jobs.settings.continual
        recovered: list[str] = []
        running = self.jobs.running()
        for job in running:
            silent_s = self._signs.silent_s(job.id, (job.fence, job.beats))
            owner = job.lease_owner or ""
            if is_gone(owner):
                reason = "its worker is gone"
            elif silent_s > limits.lease_s + limits.heartbeat_s:
                reason = f"its worker gave no sign of life for {silent_s:.0f} s"
            else:
                continue
            if self.jobs.retry(Lease(job.id, job.fence, owner), reason, seen_beats=job.beats):
                recovered.append(job.id)
        self._signs.keep({job.id for job in running})
        return recovered

    def publish(self) -> list[str]:
        """Publishes the waiting jobs, the oldest first, whenever the broker's queue is empty.

        So a lost message comes again, and messages never pile up, however long the jobs wait.
        """
        waiting = self.jobs.queued(PUBLISHED_AT_ONCE)
        if not waiting or self.publisher.waiting():
            return []
        self.publisher.publish(waiting)
        return list(waiting)
