"""How much memory this process has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most this process has held at once, in bytes, since it became this program.

    Linux keeps ``ru_maxrss`` of whoever started a process in it, so there the kernel's own high-water mark is read.
    """
    said = STATUS.read_text() if STATUS.is_file() else ""
    if "VmHWM:" in said:
        return int(said.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
