"""An engine ends with the process that started it."""

import os
import stat
import sys
import threading


def end_with_parent() -> None:
    """When standard input is a pipe, end as it ends: the process that held the other end is gone."""
    descriptor = sys.stdin.fileno()
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return

    def wait() -> None:
        while os.read(
            descriptor, 4096
        ):  # Python's own reader holds a lock that an ending interpreter waits for
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="parent").start()
