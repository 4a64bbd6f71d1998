"""What the machine allows and what it was doing: memory bandwidth, peak memory, and who else used the cores."""

import platform
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import psutil

from everlearn.cpu_features import instructions


def read_bandwidth(threads: int, size_bytes: int = 512 * 1024**2, rounds: int = 5) -> float:
    """Bytes/s that `threads` threads read from memory together: the best of some passes over a large array."""
    parts = np.array_split(np.ones(size_bytes // 8, dtype=np.int64), threads)
    best_s = float("inf")
    for _ in range(rounds):
        workers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best_s = min(best_s, time.perf_counter() - begin)
    return size_bytes / best_s


def cpu() -> str:
    """Its name, how many cores, and what it multiplies with."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    name = named.group(1) if named else platform.processor() or platform.machine()
    return f"{name}, {psutil.cpu_count()} cores, {', '.join(instructions().names)}"


def peak_memory_bytes(pid: int) -> int:
    """The most that a process and its children, each for itself, ever had in memory."""
    process = psutil.Process(pid)
    return sum(_peak(each.pid) for each in (process, *process.children(recursive=True)))


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return psutil.Process(pid).memory_info().rss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


class Neighbours:
    """The share of the cores that went to processes other than the benchmark's: `with Neighbours() as others`."""

    share: float = 0.0

    def __enter__(self) -> Self:
        self._begin = self._used()
        return self

    def __exit__(self, *_: object) -> None:
        all_s, own_s, total_s = (
            after - before for after, before in zip(self._used(), self._begin, strict=True)
        )
        self.share = max(0.0, (all_s - own_s) / total_s) if total_s else 0.0

    @staticmethod
    def _used() -> tuple[float, float, float]:
        """Seconds of all cores: used by anyone, used by this process and its children, elapsed."""
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        me = psutil.Process()
        own_s = sum(_cpu_s(process) for process in (me, *me.children(recursive=True)))
        return sum(_seconds(times)) - idle_s, own_s, sum(_seconds(times))


def _seconds(times: object) -> Iterable[float]:
    """Fields of psutil's CPU times without those that Linux already counts elsewhere."""
    fields: dict[str, float] = times._asdict()  # type: ignore[attr-defined]
    return (value for name, value in fields.items() if name not in {"guest", "guest_nice"})


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
