"""Progress of a training run on stderr: a bar at a terminal, else lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from everlearn.progress import Progress
from train.launch import OnStep

LINE_EVERY_S = 10.0
TOLD = ("data: ", "warning: ", "note: ")
"""Messages from before training that stay on the screen."""


@contextmanager
def live_view() -> Generator[tuple[Progress, OnStep]]:
    """At a terminal a bar with loss, speed and time left; else a line every ten seconds."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    numbers = TextColumn("{task.fields[numbers]}", markup=False)
    console = Console(stderr=True)
    with Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        numbers,
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None, numbers="")

        def progress(step: str, done: float | None = None) -> None:
            if step.startswith(TOLD):
                console.print(step, highlight=False, markup=False)
            elif not step.startswith("training:"):
                bar.update(task, description=step, total=None)

        def on_step(report: dict[str, Any]) -> None:
            bar.update(
                task,
                description="training",
                total=report["steps"],
                completed=report["step"],
                numbers=numbers_of(report),
            )
            if report["held_nll"] is not None:
                console.print(held_line(report), highlight=False)

        yield progress, on_step


def _lines() -> tuple[Progress, OnStep]:
    last = [0.0]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def progress(step: str, done: float | None = None) -> None:
        if not step.startswith("training:"):
            say(step)

    def on_step(report: dict[str, Any]) -> None:
        if report["held_nll"] is not None:
            say(held_line(report))
        if time.monotonic() - last[0] > LINE_EVERY_S or report["step"] == report["steps"]:
            last[0] = time.monotonic()
            say(f"step {report['step']}/{report['steps']}  {numbers_of(report)}")

    return progress, on_step


def numbers_of(report: dict[str, Any]) -> str:
    """``loss 2.134  412 tokens/s  3:07 left``."""
    minutes, seconds = divmod(round(report["seconds_left"]), 60)
    left = f"{minutes}:{seconds:02d} left"
    return f"loss {report['loss']:.3f}  {report['tokens_per_s']:.0f} tokens/s  {left}"


def held_line(report: dict[str, Any]) -> str:
    """The task's own measures, or the perplexity of models without."""
    figures = report.get("held") or {"perplexity": math.exp(report["held_nll"])}
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
    return f"step {report['step']}: {said} on the held-out set"
