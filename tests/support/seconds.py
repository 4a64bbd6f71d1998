"""Where the time of a run goes: seconds and CPU seconds of each folder and of the ten slowest files, said at its end.

Where the CPU seconds are far below the seconds, a test waits: for another process's sleep, or for a busy machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import PurePath

import psutil
import pytest

SLOWEST = 10
UNSEEN_S = 0.05
"""Phases shorter than this do not have the CPU time of their running children looked up: that takes milliseconds."""


def cpu_s(running: bool) -> float:
    """CPU seconds of this process and of the children that it waited for; with ``running``, of those that run, too."""
    this = psutil.Process()
    processes = [this]
    if running:
        processes += this.children(recursive=True)
    found = 0.0
    for process in processes:
        try:
            found += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return found


class Seconds:
    """Notes, on the report of each test's setup, call and teardown, the CPU seconds since the one before."""

    def __init__(self) -> None:
        self._before = cpu_s(running=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        report.cpu_s = 0.0
        if call.duration > UNSEEN_S:
            now = cpu_s(running=True)
            report.cpu_s = max(0.0, now - self._before)
            self._before = now
        return report


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Seconds())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the two tables."""
    reports = [
        one for kind in terminalreporter.stats.values() for one in kind if isinstance(one, pytest.TestReport)
    ]
    if not reports:
        return
    of_files = summed(reports)
    of_folders: dict[str, Spent] = defaultdict(Spent)
    for file, spent in of_files.items():
        of_folders[str(PurePath(file).parent)].add(spent)
    terminalreporter.section("where the time went: seconds, CPU seconds, tests")
    for line in [*lines(of_folders), "the slowest files", *lines(of_files)[:SLOWEST]]:
        terminalreporter.write_line(line)


@dataclass
class Spent:
    seconds: float = 0.0
    cpu_s: float = 0.0
    tests: int = 0

    def add(self, other: Spent) -> None:
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.tests += other.tests


def summed(reports: Iterable[pytest.TestReport]) -> dict[str, Spent]:
    """What each file's tests took, their fixtures included."""
    found: dict[str, Spent] = defaultdict(Spent)
    for report in reports:
        file = report.nodeid.partition("::")[0]
        found[file].add(Spent(report.duration, getattr(report, "cpu_s", 0.0), report.when == "setup"))
    return found


def lines(spent: dict[str, Spent]) -> list[str]:
    """One line each, the longest first."""
    ordered = sorted(spent.items(), key=lambda item: -item[1].seconds)
    return [f"{one.seconds:7.1f} {one.cpu_s:7.1f} {one.tests:6}  {name}" for name, one in ordered]
