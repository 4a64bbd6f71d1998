"""Which process holds a lease, and whether a process of this machine that held one is gone."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

PROC = Path("/proc")


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
