"""``make demo``: one model goes once around the whole house, and a page shows what it learned and forgot.

A server is started and talked to all the time. Three jobs teach its model three texts, each gated, compressed and
swapped in; the last is rolled back and brought forward again. Then the same lessons are taught naively, and both
are measured on the same held text.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from continual.demo.naive import Lesson, Record, losses, train_naively
from continual.demo.report import Outcome, Taught, ratio, write_report
from continual.demo.server import Server, serving
from continual.demo.texts import DOMAINS, Domain, write_domain
from continual.demo.visitor import Visitor
from continual.learn.measure import general_examples, pieces
from continual.learn.plan import make_plan
from continual.learn.replay import read_buffer
from continual.learn.teach import Upload, prepare_data
from continual.queue.jobs import Jobs
from continual.queue.states import Job
from continual.queue.steps import Steps
from continual.recipe import ContinualRecipe
from everlearn.errors import Conflict, EverlearnError
from everlearn.progress import Progress, shown
from everlearn.registry.database import read
from everlearn.registry.registry import Registry
from everlearn.settings import Settings, load_settings
from train.data.store import Example

MODEL = "smollm2"
RECIPE: Mapping[str, Any] = {
    "epochs": 1,
    "lr": 3e-4,
    "batch_tokens": 512,
    "sequence_tokens": 256,
    "micro_batch": 2,
    "held_fraction": 0.2,
    "replay": {"share": 1.0, "base": 0.4, "held_tokens": 2048},
    "generation": {"tokens": 3072, "sample_tokens": 128},
    "gate": {"max_forgetting": 0.15},
}
GENERAL_TOKENS = 1024
MARK = "made-by-the-demo"
console = Console(stderr=True, highlight=False)


def demo(
    home: Annotated[Path, typer.Option(help="Where the demonstration keeps its models.")] = Path(
        ".cache/demo"
    ),
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo-report.html"),
) -> None:
    """Teach a served model three texts, show what it learned and what it forgot."""
    started = time.monotonic()
    settings = load_settings().model_copy(update={"home": _fresh(home.absolute())})
    registry = Registry(settings)
    with shown() as progress:
        with serving(settings, MODEL, progress) as server, Visitor(server.url, MODEL) as visitor:
            say(started, f"{MODEL} is served at {server.url}, and a visitor talks to it")
            taught = [teach(server, settings, domain, progress, started) for domain in DOMAINS]
            back_to, rollback_s = roll_back_and_forward(server, registry)
            say(started, f"rolled back to {back_to} in {rollback_s:.1f} s, and forward again")
        ours, naive = compare(settings, registry, [job for job, _ in taught], progress)
    outcome = Outcome(
        model=MODEL,
        machine=f"{os.cpu_count()} cores ({platform.machine()})",
        duration=_span(time.monotonic() - started),
        lessons=[lesson for _, lesson in taught],
        ours=ours,
        naive=naive,
        parent_mb=registry.lineage(MODEL)[1].manifest.size_bytes / 1e6,
        replay_text=f"{RECIPE['replay']['share']:.0%} of earlier lessons and {RECIPE['replay']['base']:.0%} of text "
        "that the model had written itself before the first, for each new token",
        max_forgetting=RECIPE["gate"]["max_forgetting"],
        rolled_back_to=back_to,
        rollback_s=rollback_s,
    )
    write_report(report, outcome, visitor)
    conclude(started, ours, naive, visitor, report)


def teach(
    server: Server, settings: Settings, domain: Domain, progress: Progress, started: float
) -> tuple[Job, Taught]:
    """One lesson: a file uploaded, a job followed to its end, the new version serving."""
    began = time.monotonic()
    before, before_version = server.continue_text(domain.prompt)
    path = _file(settings, domain)
    write_domain(domain, path)
    recipe = {**RECIPE, "domain": domain.name}
    found = server.wait(server.create_job(server.upload(path), recipe), progress)
    server.wait_for_version(found["fine_tuned_model"])
    after, after_version = server.continue_text(domain.prompt)
    job = Jobs(settings).get(found["id"])
    took = _span(time.monotonic() - began)
    report = job.report or {}
    served, mixture = report["gates"]["served"], report["mixture"]
    lesson = Taught(
        domain=domain.name,
        title=domain.title,
        prompt=domain.prompt,
        before=before,
        before_version=before_version,
        after=after,
        after_version=after_version,
        new_tokens=mixture["new"]["tokens"],
        replayed_tokens=sum(part["tokens"] for name, part in mixture.items() if name != "new"),
        tokens_per_s=report["training"]["tokens_per_s"],
        gain=served["gain"]["mean"],
        worst=max(kept["forgetting"] for kept in served["kept"]),
        size_mb=Registry(settings).resolve(after_version).manifest.size_bytes / 1e6,
        took=took,
    )
    say(
        started,
        f"{domain.name}: {after_version} serves; gained {lesson.gain:.3f} nats per token, worst forgetting "
        f"{lesson.worst:+.3f}, in {took}",
    )
    return job, lesson


def roll_back_and_forward(server: Server, registry: Registry) -> tuple[str, float]:
    """Undoes the last promotion on the running server, and redoes it; where it went back to, and how fast."""
    back = registry.rollback(MODEL)
    seconds = server.wait_for_version(back.ref)
    server.wait_for_version(registry.rollback(MODEL).ref)
    return back.ref, seconds


def compare(
    settings: Settings, registry: Registry, jobs: Sequence[Job], progress: Progress
) -> tuple[Record, Record]:
    """Our models and the naive ones, after each lesson, on the held text that the jobs kept."""
    order = tuple(domain.name for domain in DOMAINS)
    parents = [registry.lineage(job.result_model or "")[1] for job in jobs]
    start = registry.path(registry.lineage(parents[0].ref)[1])
    ours = [registry.path(parent) for parent in parents]
    naive = train_naively(
        _lessons(settings, registry, start, progress), start, settings.home / "naive", progress
    )
    held = _held(registry, start)
    models = [start, *ours, *naive]
    rows = []
    for n, model_dir in enumerate(models):
        rows.append(losses(model_dir, held, lambda _, n=n: progress("measuring both", n / len(models))))
    return Record(order, tuple(rows[: len(ours) + 1])), Record(order, (rows[0], *rows[len(ours) + 1 :]))


def _lessons(settings: Settings, registry: Registry, start: Path, progress: Progress) -> list[Lesson]:
    """The very data of the jobs: preparing is a function of the file, the tokenizer and the recipe."""
    lessons = []
    for domain in DOMAINS:
        recipe = ContinualRecipe.model_validate({**RECIPE, "domain": domain.name})
        plan = make_plan(registry, settings, MODEL, domain.name, recipe)
        file = _file(settings, domain)
        steps = Steps(settings.home / "lessons" / domain.name)
        data = prepare_data(steps, plan, start, Upload(file, file.name), None, settings.continual, progress)
        lessons.append(Lesson(domain.name, plan, data.directory / "data" / "train"))
    return lessons


def _held(registry: Registry, start: Path) -> dict[str, list[Example]]:
    """Every domain's held-out examples, and the general text."""
    with read(registry.database) as connection:
        by_domain = read_buffer(connection, MODEL, "held").by_domain()
    held = {domain.name: pieces([kept.example for kept in by_domain[domain.name]]) for domain in DOMAINS}
    general = general_examples(start / "tokenizer.json", GENERAL_TOKENS)
    return held | {"general": [one for examples in general.values() for one in examples]}


def _fresh(home: Path) -> Path:
    """An empty folder, what an earlier demonstration left in it removed. Raises Conflict where others use it."""
    if (home / MARK).exists():
        shutil.rmtree(home)
    if home.exists() and any(home.iterdir()):
        raise Conflict(f"{home} is not empty, and no demonstration made it: name another --home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / MARK).touch()
    return home


def _file(settings: Settings, domain: Domain) -> Path:
    return settings.directory("tmp") / f"{domain.name}.jsonl"


def conclude(started: float, ours: Record, naive: Record, visitor: Visitor, report: Path) -> None:
    """The figures in four lines, also where they miss their goals."""
    share = ratio(ours, naive)
    said = "nothing to compare: the naive way forgot nothing" if share is None else f"{share:.0%} of it"
    say(
        started,
        f"naive fine-tuning gained {naive.gain:.3f} nats per token from start to end and forgot {naive.forgetting:.3f}",
    )
    say(
        started,
        f"everlearn gained {ours.gain:.3f} from start to end and forgot {ours.forgetting:.3f} ({said})",
    )
    say(started, f"{visitor.answers} streamed answers, {len(visitor.failures)} failed requests")
    console.print(f"\nThe report: [bold]{report.absolute()}[/]")


def say(started: float, what: str) -> None:
    console.print(f"[dim]{_span(time.monotonic() - started)}[/]  {what}")


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")


def main() -> None:
    """Entry point of ``python -m continual.demo``."""
    try:
        typer.run(demo)
    except EverlearnError as error:
        console.print(f"[red]error:[/] {error.message}")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
