"""One continual-training job, from an uploaded file to a promoted version. Run as a child of the worker's task.

plan -> data -> replay -> base -> mixture -> training -> gate as float -> compression -> gate as served -> promotion.
Each step lies in the job's folder once it is done, so a job that was killed goes on where it was. The result
depends on the champion, the file, the buffer, the recipe and its seed: not on the job's id, the time, or a kill.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from compress.export import build_export, recipe_of, write_export
from continual.learn.best import Scored
from continual.learn.examine import GateName, GateRefused, Measured, held_examples, score, verdict
from continual.learn.legacy_job_folder import take_up
from continual.learn.plan import Plan, is_current, make_plan
from continual.learn.promote import ChampionMoved, MeasuredBundle, promote
from continual.learn.replay import Arrival
from continual.learn.reservoir import lowest, lowest_held
from continual.learn.step_table import step_table
from continual.learn.teach import (
    Upload,
    base_store,
    bundle_candidate,
    data_store,
    documents_of,
    draw_replay,
    mix_sources,
    prepare_data,
    replayed,
    sample_base_replay,
    train_candidate,
)
from continual.queue.document_count import is_one_text
from continual.queue.files import RESULTS, File, Files
from continual.queue.jobs import Jobs
from continual.queue.states import Lease, LeaseLost, Level
from continual.queue.steps import Step, Steps
from continual.recipe import BASE, ContinualRecipe, domain_of
from everlearn.bundles.bundle import file_entry, read_manifest
from everlearn.errors import Conflict, Corrupt, EverlearnError, NotFound, Unavailable
from everlearn.processes.child import answer
from everlearn.progress import Progress
from everlearn.registry.database import read
from everlearn.registry.registry import Registry, Version
from everlearn.registry.tables import FileRow
from everlearn.settings import Settings
from train.data.card import DataCard
from train.data.reading.read import SEPARATOR
from train.errors import Stopped
from train.launch import Outcome

MAX_STARTS = 3
"""How often a job begins anew because the champion changed under it."""

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)

LOSS_EVENTS = 100
"""About so many of a run's steps become events."""


def run(
    request: Mapping[str, Any], progress: Progress, stopping: threading.Event | None = None
) -> dict[str, Any]:
    """Does the job ``job_id`` under the lease ``fence`` of ``owner``; ``settings`` are the installation's.

    Returns ``state``: "succeeded" or "failed", already written to the job's row with error and report.
    Raises Conflict where the lease was lost, and Unavailable: another attempt may do better. Once ``stopping``
    is set it ends soon, training with a checkpoint.
    """
    lease = Lease(request["job_id"], request["fence"], request["owner"])
    settings = Settings(**request["settings"])
    try:
        return Pipeline(settings, lease, progress, stopping or threading.Event()).end()
    except LeaseLost as error:
        raise Conflict(error.message) from error


class Pipeline:
    """What the steps of one job share."""

    def __init__(
        self, settings: Settings, lease: Lease, progress: Progress, stopping: threading.Event
    ) -> None:
        self.settings, self.lease, self.stopping = settings, lease, stopping

        def tell(step: str, done: float | None = None) -> None:
            if self.stopping.is_set() and not self.training:
                raise Unavailable("the job was asked to stop; it goes on from here")
            progress(step, done)

        self.progress, self.training = tell, False
        self.registry = Registry(settings)
        self.database = self.registry.database
        self.jobs = Jobs(settings, self.database)
        self.job = self.jobs.get(lease.job_id)
        self.steps = Steps(settings.directory("jobs") / lease.job_id)
        self.report: dict[str, Any] = {}

    def end(self) -> dict[str, Any]:
        """Runs the job to its end. What no other attempt could change ends it as failed."""
        try:
            return self.run()
        except LeaseLost:
            raise
        except (OSError, EverlearnError) as error:
            if disk := _disk_fault(error):
                return self.fail(
                    "disk_full", f"the job cannot write to its disk: {disk}. The champion is untouched"
                )
            if isinstance(error, Stopped):
                raise Unavailable(error.message) from error
            if not isinstance(error, EverlearnError) or isinstance(error, Unavailable):
                raise
            return self.fail(error.code, error.message, error.param)

    def run(self) -> dict[str, Any]:
        for _ in range(MAX_STARTS):
            plan = self.plan()
            try:
                version = self.learn(plan)
            except ChampionMoved as moved:
                self.event(f"{moved.message}; starting over", level="warn")
                self.steps.clear()
                continue
            shutil.rmtree(self.steps.folder, ignore_errors=True)
            return {"state": "succeeded", "result_model": version.ref}
        raise Conflict(f"{self.job.model}'s champion changed {MAX_STARTS} times while this job ran")

    def plan(self) -> Plan:
        """Pinned when the job first runs; made anew where the champion has changed since."""
        if take_up(self.steps):
            self.event("an earlier version of everlearn began this job; it goes on from there")
        if (found := self.steps.find("plan")) and not is_current(self.registry, Plan(**found.result)):
            self.event("the champion has changed since this job began; starting over", level="warn")
            self.steps.clear()

        def make(directory: Path) -> Mapping[str, Any]:
            recipe = ContinualRecipe.model_validate(self.job.recipe)
            domain = recipe.domain or domain_of(self.file(self.job.training_file).filename)
            made = make_plan(self.registry, self.settings, self.job.model, domain, recipe)
            return made.model_dump(mode="json")

        return Plan(**self.steps.do("plan", make).result)

    def learn(self, plan: Plan) -> Version:
        """All steps in order. Raises GateRefused, ChampionMoved, and what a step raises."""
        import torch

        torch.set_num_threads(plan.threads)
        champion, parent = self.registry.resolve(plan.champion), self.registry.resolve(plan.parent)
        parent_dir = self.registry.path(parent)
        self.report |= {"domain": plan.domain, "champion": plan.champion, "parent": plan.parent}
        data = prepare_data(
            self.steps,
            plan,
            parent_dir,
            self.upload(self.job.training_file),
            self.job.validation_file and self.upload(self.job.validation_file),
            self.settings.continual,
            self.part(0.0, 0.05),
        )
        told_of_data = DataCard.model_validate(data.result).told()
        for line in told_of_data:
            if not line.startswith("data: "):
                self.event(line, level="warn")
        replay = draw_replay(self.steps, plan, self.database, data)
        if corrupt := replay.result["corrupt"]:
            self.event(f"{len(corrupt)} examples of the buffer are damaged and were skipped", level="warn")
        if plan.domain in replayed(replay, "train"):
            self.event(
                f"the domain {plan.domain} is known: these examples join those that the buffer has of it"
            )
        measured = held_examples(plan, data, replay, parent_dir)
        for note in [*measured.notes, *self.notes_on_one_text()]:
            self.event(note, level="warn")
        base = sample_base_replay(self.steps, plan, parent_dir, data, replay, self.part(0.05, 0.2))
        mixture = mix_sources(self.steps, plan, data, replay, base)
        self.report |= {
            "data": data.result,
            "mixture": mixture.result,
            "corrupt_examples": corrupt,
            "generated": base.result["generated"],
        }
        read = [line.removeprefix("data: ") for line in told_of_data if line.startswith("data: ")]
        self.event(f"the data is ready: {'; '.join(read)}", self.report["mixture"])
        outcome = self.train(plan, parent_dir, mixture)
        told = {"data": data.result["inputs_sha256"], "mixture": mixture.result}
        candidate = bundle_candidate(self.steps, plan, parent, outcome, told)
        self.report["training"] = outcome.metrics
        memory, bundle = replay.result["memory"], candidate.directory / "bundle"
        float_scores = self.gate("float", plan, measured, memory, parent, bundle, self.part(0.7, 0.8))
        served_scores: list[Scored] = []
        served: Step | None = None
        if champion.digest != parent.digest:
            served = self.compress(plan, champion, candidate, self.part(0.8, 0.9))
            made = served.directory / "bundle"
            served_scores = self.gate("served", plan, measured, memory, champion, made, self.part(0.9, 0.98))
        self.progress("promoting", 0.99)
        return promote(
            self.registry,
            self.lease,
            plan,
            MeasuredBundle(bundle, float_scores),
            served and MeasuredBundle(served.directory / "bundle", served_scores),
            self.arrivals(plan, data, replay, base),
            self.report,
            int(outcome.metrics["tokens"]),
            self.figures(),
        )

    def train(self, plan: Plan, parent_dir: Path, mixture: Step) -> Outcome:
        """Raises Diverged, and Stopped once a checkpoint is saved."""
        self.training = True  # it stops by itself, at a point that it can go on from
        outcome = train_candidate(
            self.steps,
            plan,
            parent_dir,
            mixture,
            self.part(0.2, 0.7),
            self.tell_loss,
            self.stopping.is_set,
        )
        self.training = False
        return outcome

    def gate(
        self,
        name: GateName,
        plan: Plan,
        measured: Measured,
        memory: Mapping[GateName, Any],
        champion: Version,
        bundle: Path,
        progress: Progress,
    ) -> list[Scored]:
        """What was measured, to be remembered. Raises GateRefused saying why."""
        champion_dir = self.registry.path(champion)
        before = score(
            self.steps, f"champion {name}", champion_dir, champion.format, measured, _part(progress, 0, 0.5)
        )
        format = read_manifest(bundle).format
        after = score(self.steps, f"candidate {name}", bundle, format, measured, _part(progress, 0.5, 1))
        decided, scored = verdict(plan, name, measured, memory[name], before, after)
        self.report.setdefault("gates", {})[name] = decided.report()
        for warning in decided.warnings:
            self.event(f"gate as {name}: {warning}", level="warn")
        if begins := [kept.domain for kept in decided.kept if kept.begins]:
            self.event(
                f"gate as {name}: no best is remembered of {', '.join(begins)}: the champion's scores begin it"
            )
        self.event(f"gate as {name}: {'passed' if decided.passed else 'refused'}", decided.report())
        if not decided.passed:
            raise GateRefused(f"the candidate was refused as {name}: {'; '.join(decided.reasons)}")
        return scored

    def compress(self, plan: Plan, champion: Version, candidate: Step, progress: Progress) -> Step:
        """The candidate in the champion's own format, by the champion's own recipe."""
        bundle = candidate.directory / "bundle"
        manifest = read_manifest(bundle)

        def make(directory: Path) -> Mapping[str, Any]:
            target = directory / "bundle"
            target.mkdir()
            of = self.registry.path(champion)
            made, metrics = build_export(
                bundle, target, "generate", recipe_of(champion), progress, scales_of=of
            )
            parent = Version(plan.model, 0, manifest, manifest.created_at)
            return {"digest": write_export(target, parent, made, metrics).digest}

        return self.steps.do("served", make)

    def figures(self) -> File:
        """The file for the job's client: its training, and what the gate measured of the domain taught."""
        gain = self.report["gates"]["float"]["gain"]
        files = Files(self.settings, self.database)
        with files.uploading() as upload:
            upload.write(step_table(self.steps.folder / "run", gain["champion"], gain["candidate"]))
            name = f"{self.job.id}-step-metrics.csv"
            return files.place(upload, name, purpose=RESULTS, key_id=self.job.key_id)

    def arrivals(self, plan: Plan, data: Step, replay: Step, base: Step) -> list[Arrival]:
        """What the buffer is offered: chosen here, so that the transaction is short."""
        limits = plan.recipe.replay
        without = {*replay.result["without"]}
        train = lowest(data_store(data, "train"), limits.buffer_tokens, without=without)
        store, documents = data_store(data, "held"), documents_of(data, "held")
        held = lowest_held(store, documents, limits.held_tokens, without=set(replay.result["trained"]))
        examples, documents = [one.example for one in held], [one.document for one in held]
        arrivals = [
            Arrival(plan.domain, "held", examples, limits.held_tokens, documents),
            Arrival(plan.domain, "train", [example for _, example in train], limits.buffer_tokens),
        ]
        if (own := base_store(base)) is not None:
            arrivals.append(Arrival(BASE, "train", list(own), limits.buffer_tokens))
        return arrivals

    def notes_on_one_text(self) -> list[str]:
        """Where the gate's bounds say less than they seem to."""
        measuring = self.upload(self.job.validation_file or self.job.training_file)
        if not is_one_text(measuring.path, measuring.name):
            return []
        note = (
            f"{measuring.name} is one text, cut at blank lines: the gate takes its parts for documents, and its bounds "
            f"say how sure it is of this text alone. A line that holds nothing but {SEPARATOR} parts documents"
        )
        return [note]

    def fail(self, code: str, message: str, param: str | None = None) -> dict[str, Any]:
        """Writes that the job failed, and why; what it left on the disk goes."""
        error = {"code": code, "message": message, "param": param}
        report = {**self.report, "outcome": "refused" if code == GateRefused.code else "failed"}
        shutil.rmtree(self.steps.folder, ignore_errors=True)
        self.jobs.finish(self.lease, "failed", error=error, report=report)
        return {"state": "failed", "error": error}

    def file(self, file_id: str) -> Any:
        with read(self.database) as connection:
            row = connection.execute(select(FileRow.__table__).where(FileRow.id == file_id)).first()
        if row is None or row.deleted_at is not None:
            raise NotFound(f"the file {file_id} is not there any more", param="training_file")
        return row

    def upload(self, file_id: str) -> Upload:
        """Raises NotFound, and Corrupt where the bytes are not those that were uploaded."""
        row = self.file(file_id)
        path = self.settings.directory("files") / file_id
        if not path.is_file() or file_entry(path).sha256 != row.sha256:
            raise Corrupt(f"the file {file_id} is not what was uploaded", param="training_file")
        return Upload(path, row.filename)

    def tell_loss(self, report: dict[str, Any]) -> None:
        every = max(1, report["steps"] // LOSS_EVENTS)
        if report["step"] % every == 0 or report["step"] == report["steps"]:
            told = {"step": report["step"], "total_steps": report["steps"], "train_loss": report["loss"]}
            self.event(f"step {report['step']} of {report['steps']}", told | {"lr": report["lr"]})

    def event(self, message: str, data: Mapping[str, Any] | None = None, level: Level = "info") -> None:
        self.jobs.event(self.lease, message, data, level)

    def part(self, start: float, stop: float) -> Progress:
        return _part(self.progress, start, stop)


def _part(progress: Progress, start: float, stop: float) -> Callable[[str, float | None], None]:
    """Of a step's progress from 0 to 1, the job's from ``start`` to ``stop``."""

    def tell(step: str, done: float | None = None) -> None:
        progress(step, start + (done or 0.0) * (stop - start))

    return tell


def _disk_fault(error: Exception) -> str | None:
    """Why the disk takes nothing more, where that is what ``error`` says, or a child's last words do."""
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    if isinstance(error, Unavailable):
        return next((os.strerror(code) for code in DISK_FAULTS if os.strerror(code) in error.message), None)
    return None


def main() -> None:
    """Answers one request; SIGTERM asks to stop."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    answer(lambda request, progress: run(request, progress, stopping))


if __name__ == "__main__":
    main()
