"""The process that holds a lease, and whether it is gone from this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

PROC = Path("/proc")


class SignsOfLife:
    """For how long rows have shown none, by a clock that nobody can set."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}

    def silent_s(self, id: str, sign: object) -> float:
        """Seconds since ``sign`` of the row ``id`` was first seen as it is now."""
        now_s = time.monotonic()
        seen, since_s = self._seen.get(id, (None, now_s))
        if seen != sign:
            self._seen[id] = (sign, now_s)
            return 0.0
        return now_s - since_s

    def keep(self, ids: Collection[str]) -> None:
        """Forgets all other rows."""
        self._seen = {id: seen for id, seen in self._seen.items() if id in ids}


def this_process() -> str:
    """``host:pid:start``: unlike a bare pid it never comes again."""
    pid = os.getpid()
    return f"{_host()}:{pid}:{_started(pid)}"


def is_gone(owner: str) -> bool:
    """Whether the process has certainly ended. Of another host nothing is known: False."""
    host, _, rest = owner.partition(":")
    pid, _, started = rest.partition(":")
    if host != _host() or not pid.isdigit():
        return False
    return _started(int(pid)) != started


def _host() -> str:
    """The host, its boot, and the set of processes seen from here: a container's pids mean nothing in another."""
    name = socket.gethostname().replace(":", "_")
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
        space = os.readlink(PROC / "self/ns/pid").strip("pid:[]")
    except OSError:
        return name
    return f"{name}/{boot}/{space}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, which no clock can change; empty where there is none."""
    if not PROC.is_dir():
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        found = subprocess.run(asked, check=False, capture_output=True, text=True)
        return found.stdout.strip().replace(":", ".")
    try:
        state, *fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
