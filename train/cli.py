"""``everlearn train``: a recipe in, the next version of a model out."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, open_registry, open_settings
from train.objectives.table import help_line

if TYPE_CHECKING:
    from everlearn.progress import Progress

commands = typer.Typer()

LINE_EVERY_S = 10.0
TOLD = ("data: ", "warning: ", "note: ")
"""What stays on the screen of what is told before training."""

OnStep = Callable[[dict[str, Any]], None]


@commands.command(epilog=help_line())
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value, as in optimizer.lr=0.0003."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; the same folder goes on with it. Default: one per recipe and its data."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model. Interrupted or killed, the same command goes on from the last checkpoint."""
    from everlearn.cli.models import print_added
    from everlearn.progress import shown
    from train.launch import launch
    from train.recipe import read_recipe
    from train.runs.claim import claimed
    from train.runs.identity import contents_of
    from train.runs.registered import already_registered, find_run, register

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: save, then end
    settings = open_settings()
    wanted = read_recipe(recipe, overrides or [])
    registry = open_registry(settings)
    with shown() as progress:
        contents = contents_of(wanted, progress)
    run = find_run(registry, settings.home / "runs", wanted, contents, run_dir)
    if run.says:
        print(run.says, file=sys.stderr)
    with claimed(run.folder, wait_s=0):
        if done := already_registered(registry, run):
            print(
                f"This run is finished: {done.ref}. Another seed or --run-dir trains anew.", file=sys.stderr
            )
            print_added(done, as_json)
            return
        with live_view() as (progress, on_step):
            outcome = launch(
                wanted,
                model_dir=registry.path(run.base) if run.base else None,
                tokenizer_dir=None,
                run_dir=run.folder,
                progress=progress,
                on_step=on_step,
                contents=contents,
                base_ref=run.base.ref if run.base else None,
            )
        version = register(registry, run, outcome)
    print_added(version, as_json)


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
    import math

    return f"step {report['step']}: perplexity {math.exp(report['held_nll']):.3f} on the held set"
