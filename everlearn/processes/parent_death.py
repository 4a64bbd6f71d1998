"""Processes that end with their parent, however it ends."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if sys.platform == "linux":
    _libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """In the child, also between fork and exec: Linux kills it when its parent dies. Elsewhere nothing happens."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
