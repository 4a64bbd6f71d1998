"""One process works on a run folder: whoever comes second waits, or is refused. A kill lets go of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
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


def refuse_foreign(run_dir: Path, marker: str) -> None:
    """Raises Conflict for a folder that is not empty and has no ``marker``: a run writes and removes files in its own.

    What this module and a kill may leave there does not count.
    """
    if (run_dir / marker).exists():
        return
    others = sorted(
        entry.name
        for entry in run_dir.iterdir()
        if entry.suffix != ".lock" and not entry.name.startswith(f".{marker}.")
    )
    if others:
        raise Conflict(
            f"{run_dir} holds other things than a run ({', '.join(others[:4])}): give the run a folder of its own "
            "(--run-dir)",
            param="run_dir",
        )


def refuse_inside(run_dir: Path, data: Sequence[Path | str]) -> None:
    """Raises Conflict for a run folder within one of ``data``: what the run writes there would be read as data."""
    for path in data:
        if isinstance(path, Path) and path.is_dir() and run_dir.resolve().is_relative_to(path.resolve()):
            raise Conflict(
                f"the run folder {run_dir} lies within the data folder {path}: choose one outside it (--run-dir)",
                param="run_dir",
            )


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
