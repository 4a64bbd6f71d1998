"""An engine ends with the process that started it."""

import os
import stat
import sys
import threading


def end_with_parent() -> None:
    """When standard input is a pipe, end as it ends: the process that held the other end is gone."""
    kind = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="parent").start()
