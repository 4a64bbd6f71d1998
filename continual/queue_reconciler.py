"""Brings the queue back in line with the table: lost messages are published again, lost leases taken back.

Whether a lease is lost is decided without comparing clocks: a holder raises its row's count of beats, and a row
whose count stays the same for longer than a lease, measured here by a clock that nobody can set, has lost its holder.
The holder gives up earlier, by the same kind of clock (as Kubernetes' leader election does).
"""

from __future__ import annotations

import time

import structlog

from continual.jobs import Jobs, Lease
from continual.queue import Publisher
from continual.queue_owner import is_gone
from everlearn.errors import Unavailable

PUBLISHED_AT_ONCE = 100

log = structlog.stdlib.get_logger("continual.queue")


class Reconciler:
    """Any number of them may watch the same table."""

    def __init__(self, jobs: Jobs, publisher: Publisher) -> None:
        self.jobs = jobs
        self.publisher = publisher
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        self._told: set[str] = set()

    def reconcile(self) -> None:
        """Once. What does not answer is tried again the next time."""
        for what, step in (("recover", self.recover), ("publish", self.publish)):
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
        now_s = time.monotonic()
        limits = self.jobs.settings.continual
        recovered: list[str] = []
        running = self.jobs.running()
        for job in running:
            sign = (job.fence, job.beats)
            seen, since_s = self._seen.get(job.id, (None, now_s))
            if seen != sign:
                since_s = now_s
                self._seen[job.id] = (sign, now_s)
            owner = job.lease_owner or ""
            if is_gone(owner):
                reason = "its worker is gone"
            elif now_s - since_s > limits.lease_s + limits.heartbeat_s:
                reason = f"its worker gave no sign of life for {now_s - since_s:.0f} s"
            else:
                continue
            if self.jobs.retry(Lease(job.id, job.fence, owner), reason, seen_beats=job.beats):
                recovered.append(job.id)
        for gone in self._seen.keys() - {job.id for job in running}:
            del self._seen[gone]
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
