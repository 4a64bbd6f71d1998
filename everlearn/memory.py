"""Physical memory of this machine, and the peak of this process."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
CONTAINER = Path("/sys/fs/cgroup")
"""The control group of the container that this process is in, as it sees it."""


def physical_bytes() -> int:
    """Memory of this machine, or of the container that this process is in, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int((CONTAINER / "memory.max").read_text()))
    return total


def within_container(available_bytes: int) -> int:
    """What can be taken of the machine's available memory: no more than the limit of this container leaves.

    Pages of files that were not used of late count as free: the kernel drops them first.
    """
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (CONTAINER / "memory.stat").read_text().splitlines()
        idle = int(dict(line.split() for line in lines)["inactive_file"])
        return max(0, min(available_bytes, limit - used + idle))
    return available_bytes


def peak_bytes() -> int:
    """The most this process has held at once, in bytes, since it became this program.

    Linux keeps ``ru_maxrss`` of whoever started a process in it, so there the kernel's own high-water mark is read.
    """
    said = STATUS.read_text() if STATUS.is_file() else ""
    if "VmHWM:" in said:
        return int(said.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
