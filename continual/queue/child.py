"""`python -m continual.queue.child MODULE`: runs a module as the child that works on a job, and ends with its lease.

The lease pipe is one on which the worker tells, with every heartbeat, until when the lease is certainly this
process's own. Past that moment, or at the end of the pipe, the process ends at once: so also when the worker was
stopped, cut off from the database, or killed. The moment is of the monotonic clock, which all processes of a machine
share and nobody can set.
"""

from __future__ import annotations

import os
import runpy
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from everlearn.processes.parent_death import die_with_parent

LEASE_PIPE = "EVERLEARN_LEASH"
"""``FD,DEADLINE_S,NICE`` in the environment."""
OOM_SCORE = "500"


def main() -> None:
    """Become the child: lowest in rank, first to go when memory is short, gone when the lease ends."""
    descriptor, deadline_s, nice = os.environ.pop(LEASE_PIPE).split(",")
    die_with_parent()
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    os.nice(int(nice))
    threading.Thread(target=end_with_lease, args=(int(descriptor), float(deadline_s)), daemon=True).start()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def end_with_lease(descriptor: int, deadline_s: float) -> None:
    """Ends this process, and what it started, when the lease ends. ``deadline_s`` is of time.monotonic()."""
    said = b""
    while (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left_s)[0]:
            heard = os.read(descriptor, 4096)
            if not heard:
                break
            *whole, said = (said + heard).split(b"\n")
            deadline_s = max([deadline_s, *map(float, whole)])
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
