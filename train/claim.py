"""One process works on a run folder: whoever comes second waits, or is refused. A kill lets go of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from everlearn.errors import Conflict

COMMAND_LOCK = "command.lock"
WAIT_S = 60.0
"""How long the processes of a run that was killed may take to end."""


@contextmanager
def claimed(run_dir: Path, wait_s: float = WAIT_S) -> Generator[None]:
    """The folder for this process alone, made where it is not there; may be nested in one thread.

    Raises Conflict where another process still has it after ``wait_s`` seconds.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(run_dir / COMMAND_LOCK, is_singleton=True)
    _acquire(lock, wait_s, run_dir)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed_by_rank(run_dir: Path, rank: int) -> Generator[None]:
    """For each process that trains there. Raises Conflict."""
    lock = FileLock(run_dir / f"rank{rank}.lock")
    _acquire(lock, WAIT_S, run_dir)
    try:
        yield
    finally:
        lock.release()


def wait_for_ranks(run_dir: Path) -> None:
    """Until no process of an earlier, killed run writes there any more. Raises Conflict."""
    for path in sorted(run_dir.glob("rank*.lock")):
        lock = FileLock(path)
        _acquire(lock, WAIT_S, run_dir)
        lock.release()


def _acquire(lock: FileLock, wait_s: float, run_dir: Path) -> None:
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise Conflict(
            f"another process is training in {run_dir}: wait until it has ended, or train in another folder "
            "(--run-dir)",
            param="run_dir",
        ) from None
