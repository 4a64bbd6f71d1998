"""``everlearn train``: a recipe in, the next version of a model out."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli_arguments import Json, open_registry, open_settings
from everlearn.errors import ConfigError, Conflict, NotFound

if TYPE_CHECKING:
    from everlearn.progress import Progress
    from everlearn.records import Version
    from everlearn.registry import Registry
    from train.launch import Outcome
    from train.recipe import TrainRecipe

LINE_EVERY_S = 10.0
REGISTERED = "registered.json"

OnStep = Callable[[dict[str, Any]], None]


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value, as in optimizer.lr=0.0003."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same folder goes on with it. Default: one per recipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model. Interrupted or killed, the same command goes on from the last checkpoint."""
    from everlearn.cli_models import print_added
    from everlearn.durable import write_file
    from train.launch import launch
    from train.recipe import read_recipe

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: save, then end
    settings = open_settings()
    wanted = read_recipe(recipe, overrides or [])
    registry = open_registry(settings)
    parent = registry.weights(wanted.base) if wanted.base else None
    model = wanted.name or (parent.model if parent else "")
    if not model:
        raise ConfigError("the recipe needs a name for the model it makes from scratch", param="name")
    key = run_key(wanted, parent)
    folder = run_dir or settings.home / "runs" / f"{model}-{key}"
    if done := already_registered(registry, folder, key):
        print(f"This run is finished: {done.ref}. Another seed or --run-dir trains anew.", file=sys.stderr)
        print_added(done, as_json)
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with live_view() as (progress, on_step):
        outcome = launch(
            wanted,
            model_dir=registry.path(parent) if parent else None,
            tokenizer_dir=None,
            run_dir=folder,
            progress=progress,
            on_step=on_step,
        )
    version = register(registry, outcome, model, parent)
    said = {"ref": version.ref, "digest": version.digest, "key": key}
    write_file(folder / REGISTERED, json.dumps(said).encode())
    shutil.rmtree(outcome.directory)  # the weights are in the registry; log and recipe stay
    print_added(version, as_json)


def run_key(recipe: TrainRecipe, parent: Version | None) -> str:
    """Names a run by everything that determines it."""
    from train.recipe import OPERATIONAL

    said = recipe.model_dump(mode="json", exclude=set(OPERATIONAL))
    text = json.dumps([said, parent.digest if parent else None], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def already_registered(registry: Registry, run_dir: Path, key: str) -> Version | None:
    """What an earlier command made in this folder, if it is still registered; else the folder is empty again.

    Raises Conflict where that was another run.
    """
    file = run_dir / REGISTERED
    if not file.is_file():
        return None
    said = json.loads(file.read_bytes())
    if said["key"] != key:
        raise Conflict(
            f"{run_dir} holds the finished run of {said['ref']}, of another recipe", param="run_dir"
        )
    try:
        version = registry.resolve(said["ref"])
        if version.digest == said["digest"]:
            return version
    except NotFound:
        pass
    shutil.rmtree(run_dir)
    return None


def register(registry: Registry, outcome: Outcome, model: str, parent: Version | None) -> Version:
    """The result as the next version of ``model``."""
    from everlearn.bundle import write_bundle
    from everlearn.safetensors_header import count_parameters

    config = json.loads((outcome.directory / "config.json").read_bytes())
    with registry.staging() as staging:
        shutil.copytree(outcome.directory, staging, dirs_exist_ok=True)
        write_bundle(
            staging,
            name=model,
            format="safetensors",
            task="generate",
            architecture=next(iter(config.get("architectures") or [""])),
            parameters=count_parameters(staging),
            parent=parent.digest if parent else None,
            recipe={"train": outcome.recipe},
            metrics=outcome.metrics,
        )
        return registry.add(staging, model)


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
            if not step.startswith("training:"):
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
