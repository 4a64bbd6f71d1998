"""Progress of long work, told to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

Progress = Callable[[str, float | None], None]
"""Called with what is being done, and how much of it is: 0 to 1, or None where nobody knows."""


def silent(step: str, done: float | None = None) -> None:
    """For callers that nobody watches."""


@contextmanager
def shown() -> Generator[Progress]:
    """On stderr: a moving bar at a terminal, else one line for each step."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
    )
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(step: str, done: float | None = None) -> None:
            bar.update(task, description=step, total=None if done is None else 1.0, completed=done or 0.0)

        yield move


def _lines() -> Progress:
    told: list[str] = []

    def tell(step: str, done: float | None = None) -> None:
        if not told or told[-1] != step:
            told[:] = [step]
            print(step, file=sys.stderr, flush=True)

    return tell
