"""``everlearn jobs`` and ``everlearn worker``: continual training at the command line, on the database itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import HealthSocket, Json, complete_ref, open_settings
from everlearn.errors import ConfigError

if TYPE_CHECKING:
    from continual.queue.jobs import Jobs
    from continual.queue.states import Event, Job
    from continual.recipe import ContinualRecipe

POLL_S = 0.5

JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `everlearn jobs ls` shows it.")]

jobs = typer.Typer(
    name="jobs", help="Teach a model something new, and follow how it goes.", no_args_is_help=True
)


@jobs.command()
def create(
    file: Annotated[
        Path, typer.Argument(help="Text, JSONL or Parquet to learn from.", exists=True, dir_okay=False)
    ],
    model: Annotated[str, typer.Option(help="The model to teach.", autocompletion=complete_ref)],
    recipe: Annotated[
        Path | None,
        typer.Option(help="A continual recipe, YAML. Default: its defaults.", exists=True, dir_okay=False),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the job; exits with 1 unless it succeeds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a job into the queue."""
    from continual.queue.check_file import check_examples
    from continual.queue.files import Files
    from everlearn.printing import print_error, print_json

    table = _jobs()
    chosen = _recipe(recipe, file.name)
    files = Files(table.settings, table.database)
    if file.is_file():
        check_examples(file, file.name, table.settings.continual)
    uploaded = files.add(file)
    try:
        job = table.create(model=model, training_file=uploaded.id, recipe=chosen)
    except BaseException:
        files.delete(uploaded.id)
        raise
    if wait:
        job = _follow(table, job.id, quiet=as_json)
    if as_json:
        print_json(describe(job))
    elif wait:
        print(job.result_model or job.state)
        if job.error:
            print_error(job.error["message"])
    else:
        print(job.id)
    if wait and job.state != "succeeded":
        raise typer.Exit(1)


@jobs.command()
def ls(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    from everlearn.printing import moment, print_json, print_table

    found = _jobs().list(limit=limit)
    if as_json:
        print_json([describe(job) for job in found])
        return
    rows = [
        (
            job.id,
            job.model,
            job.recipe.get("domain") or "",
            _state(job),
            job.result_model or "",
            moment(job.created_at),
        )
        for job in found
    ]
    print_table(["ID", "MODEL", "DOMAIN", "STATE", "RESULT", "CREATED"], rows)


@jobs.command()
def show(job: JobId, as_json: Json = False) -> None:
    """Show a job: its recipe, how it ended, and what the gate measured."""
    from everlearn.printing import moment, print_json, print_table
    from everlearn.settings import flatten

    found = _jobs().get(job)
    if as_json:
        print_json(describe(found))
        return
    told = {
        "id": found.id, "model": found.model, "state": _state(found), "attempt": found.attempt,
        "training file": found.training_file, "result": found.result_model, "trained tokens": found.trained_tokens,
        "created": moment(found.created_at), "started": moment(found.started_at), "finished": moment(found.finished_at),
    }  # fmt: skip
    report = dict(found.report or {})
    gates = report.pop("gates", {})
    nested = {"error": found.error or {}, "report": report, "recipe": found.recipe}
    rows = [*told.items(), *flatten(nested)]
    print_table(["", ""], [(name, value) for name, value in rows if value not in (None, "")])
    for name, gate in gates.items():
        print(f"\nThe gate as {name}: {'passed' if gate['passed'] else 'refused'}; in nats per token")
        print_table(GATE, list(_gate_rows(gate)))
        for warning in gate.get("warnings", []):
            print(f"warning: {warning}")


@jobs.command()
def events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    as_json: Json = False,
) -> None:
    """Print what happened to a job; with --json one object a line."""
    table = _jobs()
    table.get(job)
    if follow:
        _follow(table, job, as_lines=as_json)
        return
    _print_new(table, job, None, as_json)


@jobs.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """End a job that is not over."""
    _show_state(_jobs().cancel(job), as_json)


@jobs.command()
def pause(job: JobId, as_json: Json = False) -> None:
    """Let a job wait, a running one once its work is saved; `resume` lets it go on."""
    _show_state(_jobs().pause(job), as_json)


@jobs.command()
def resume(job: JobId, as_json: Json = False) -> None:
    """Let a paused job go on where it was."""
    _show_state(_jobs().resume(job), as_json)


def worker(health: HealthSocket = None) -> None:
    """Run queued jobs until Ctrl-C or SIGTERM; `everlearn serve` keeps a worker by itself."""
    from continual.queue.jobs import why_no_worker
    from everlearn.errors import Unavailable
    from everlearn.logs import configure_logging

    settings = open_settings()
    configure_logging(settings.log_level)
    if reason := why_no_worker(settings):
        raise Unavailable(reason)
    from continual.queue.worker import work

    work(settings, uds=health)


GATE = [
    "DOMAIN",
    "-DOCUMENTS",
    "-CHAMPION",
    "-CANDIDATE",
    "-CHANGE",
    "-BEST",
    "OF",
    "-FROM THE BEST",
    "-AT WORST",
]


def _gate_rows(gate: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What is taught, then each earlier domain; a change above zero is better."""
    gain = gate["gain"]
    shown = (_nats(gain[key]) for key in ("champion", "candidate", "mean"))
    yield f"{gain['domain']} (taught)", str(gain["documents"]), *shown, "", "", "", _nats(gain["low"])
    for kept in gate["kept"]:
        best = kept.get("best", {})  # jobs of an earlier everlearn have none
        of = f"{best['version']}{' (begins)' if best['begins'] else ''}" if best else ""
        name = kept["domain"] if kept.get("measured", True) else f"{kept['domain']} (too few)"
        shown = (_nats(kept[key]) for key in ("champion", "candidate", "mean"))
        from_best = _nats(None if best.get("forgetting") is None else -best["forgetting"])
        low = best["low"] if best else kept["low"]
        yield name, str(kept["documents"]), *shown, _nats(best.get("nats")), of, from_best, _nats(low)


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def describe(job: Job) -> dict[str, Any]:
    """A job as JSON gives it."""
    hidden = {"idempotency_key", "beats", "lease_until"}
    return {name: value for name, value in job.__dict__.items() if name not in hidden}


def _jobs() -> Jobs:
    from continual.queue.jobs import Jobs

    return Jobs(open_settings())


def _recipe(path: Path | None, filename: str) -> ContinualRecipe:
    """Raises ConfigError with file and line of the key at fault."""
    from continual.recipe import domain_of, parse_recipe
    from everlearn.settings_file import read_settings_file

    file = read_settings_file(path)
    try:
        return parse_recipe({"domain": domain_of(filename)} | file.values)
    except ConfigError as error:
        line = file.line(error.param or "")
        place = f"{path}:{line}: " if line else f"{path}: " if path else ""
        raise ConfigError(f"{place}{error.message}", param=error.param) from None


def _follow(table: Jobs, job_id: str, *, quiet: bool = False, as_lines: bool = False) -> Job:
    """Prints events until the job is over; every one of them, the last ones too."""
    last: int | None = None
    while True:
        job = table.get(job_id)
        last = last if quiet else _print_new(table, job_id, last, as_lines)
        if job.is_over:
            return job
        time.sleep(POLL_S)


def _print_new(table: Jobs, job_id: str, last: int | None, as_lines: bool) -> int | None:
    while found := table.events(job_id, after=last):
        for event in found:
            print(_line(event, as_lines), flush=True)
        last = found[-1].id
    return last


def _line(event: Event, as_json: bool) -> str:
    import json

    if as_json:
        return json.dumps(event.__dict__, ensure_ascii=False)
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    level = "" if event.level == "info" else f"{event.level}: "
    return f"{clock}  {level}{event.message}"


def _show_state(job: Job, as_json: bool) -> None:
    from everlearn.printing import print_json

    print_json(describe(job)) if as_json else print(f"{job.id} is {_state(job)}")


def _state(job: Job) -> str:
    done = job.progress.get("done")
    if job.state != "running":
        return job.state
    told = (
        "" if not isinstance(done, int | float) else f" {done:.0%} {job.progress.get('step') or ''}".rstrip()
    )
    return f"running{told}{' (is asked to pause)' if job.pause_requested_at else ''}"
