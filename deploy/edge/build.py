"""From a bundle to a folder for one kind of device: ``everlearn deploy edge MODEL --target web --out DIR``.

Everything that can be refused is refused before a byte is written: the form, the budget, the operators. Only what has
to be measured is compared again at the end, before the folder gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deploy.edge.budget import Budget, Prediction, fits, megabytes, predict, refuse_over
from deploy.edge.check.operators import refuse_operators
from deploy.edge.check.sessions import place_for
from deploy.edge.manifest import EdgeManifest, Measured, RuntimeUsed, describe, write_manifest
from deploy.edge.plan import Plan, plan
from deploy.edge.probes import asked, compute, refuse_difference, request_of
from deploy.edge.targets import TARGETS, FormName
from deploy.edge.web.site import write_site
from deploy.edge.weights import write_weights
from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.bundles.tasks import TASK_WORDS, refuse_task
from everlearn.errors import Conflict, EverlearnError, InvalidInput, Unsupported
from everlearn.privacy import share_folder
from everlearn.progress import Progress, silent
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


def build(
    settings: Settings,
    ref: str,
    target: str,
    out: Path,
    progress: Progress = silent,
    *,
    form: FormName | None = None,
    budget: Budget | None = None,
    arm64: Path | None = None,
) -> EdgeManifest:
    """Writes the folder ``out`` for ``target``; it is there whole, or not at all. Returns its manifest.

    ``form``: the target's first, unless said. ``arm64``: as deploy.edge.check.sessions.place_for takes it.
    Raises NotFound, Unsupported for a version that has no such form, OverBudget, CannotRun for operators that the
    target lacks or runs slowly, Differs where it computes something else, Conflict where ``out`` is taken.
    """
    budget = budget or Budget()
    registry = Registry(settings)
    version = registry.resolve(ref)
    form = form_for(version, target, form)
    refuse_taken(out)
    progress("verifying the model", None)
    bundle = registry.path(version)
    planned = plan(version, bundle, target, form)
    predicted = predict(planned)
    what = f"{version.ref} for {target} as {form}"
    if not fits(budget, predicted):
        hint = other_ways(version, bundle, target, form, budget)
        refuse_over(budget, predicted.download_bytes, predicted.memory_bytes, predicted, what, hint)
    place = place_for(settings, target, arm64)
    progress(f"opening its operators on {planned.of.runtime.name}", None)
    for model in planned.models.values():
        refuse_operators(model, planned.of.runtime, place, what)
    with folder_for(out) as staging:
        write_files(planned, staging, progress)
        manifest = describe_folder(planned, staging, predicted, progress)
        progress(f"measuring on {place.on}", None)
        request = request_of(staging, manifest.task, form, manifest.graph, asked(manifest.probes))
        said = place.ask(request if place.is_device else request | {"steps": 1})
        refuse_difference(said, manifest, place.on)
        if place.is_device:
            measured = Measured(
                tokens_per_s=round(said["tokens_per_s"], 1), peak_bytes=said["peak_bytes"], on=place.on
            )
            memory = predicted.with_measured(measured.peak_bytes)
            refuse_over(
                budget,
                manifest.download_bytes,
                memory,
                predicted,
                f"{what}, measured,",
                "Choose a larger budget",
            )
            changed = {"measured": measured, "memory_bytes": memory, "memory_is": "measured"}
            manifest = manifest.model_copy(update=changed)
        if target == "web":
            write_site(staging, manifest.task, settings, progress)
        write_manifest(staging, manifest)
        share_folder(staging)
        sync_tree(staging)
        move_directory(staging, out.absolute())
    return manifest


def form_for(version: Version, target: str, form: FormName | None) -> FormName:
    """The form asked for, or the target's first. Raises Unsupported naming those that the target runs well."""
    refuse_task(version.ref, version.task, tuple(TARGETS[target].forms), target)
    forms = TARGETS[target].forms[version.task]
    if form and form not in forms:
        slow = next((one for one in TARGETS[target].runtime.slow if form == "int4-matmulnbits"), None)
        why = f": {slow.operator} is slow there, {slow.why}" if slow else ""
        raise Unsupported(
            f"{target} does not take {TASK_WORDS[version.task]} as {form}{why}; it takes {', '.join(forms)}",
            param="form",
        )
    return form or forms[0]


def other_ways(version: Version, bundle: Path, target: str, form: FormName, budget: Budget) -> str:
    """Which form of this target, or else which targets, would be within the budget."""
    found: list[str] = []
    for other, of in TARGETS.items():
        for one in of.forms[version.task]:
            if (other, one) == (target, form):
                continue
            try:
                predicted = predict(plan(version, bundle, other, one))
            except EverlearnError:
                continue
            if fits(budget, predicted):
                sizes = f"{megabytes(predicted.download_bytes)}, memory {megabytes(predicted.memory_bytes)}"
                found.append(f"--target {other} --form {one} (download {sizes})")
    here = [one for one in found if one.startswith(f"--target {target} ")]
    if fitting := here or found:
        return f"Within it: {'; '.join(fitting)}"
    return "No form and no target is within it: choose a larger budget, or a smaller model"


def write_files(planned: Plan, staging: Path, progress: Progress) -> None:
    """All files but edge.json."""
    write_weights(planned.parts, planned.contents, staging, progress)
    for name, content in planned.files.items():
        if isinstance(content, bytes):
            (staging / name).write_bytes(content)
        else:
            shutil.copyfile(content, staging / name)


def describe_folder(planned: Plan, staging: Path, predicted: Prediction, progress: Progress) -> EdgeManifest:
    """What edge.json is to say before anything was measured."""
    version, runtime = planned.version, planned.of.runtime
    progress("computing the probes", None)
    probes, bound = compute(staging, version.task, planned.form, planned.graph)
    files = [describe(staging, name) for name in sorted(planned.sizes)]
    return EdgeManifest(
        model=version.model,
        version=version.version,
        digest=version.digest,
        task=version.task,
        target=planned.target,
        form=planned.form,
        runtime=RuntimeUsed(name=runtime.name, version=runtime.version),
        files=files,
        tensors={part.name: part.spans for part in planned.parts},
        graph=planned.graph,
        generation=planned.generation,
        probes=probes,
        bound=bound,
        download_bytes=sum(one.bytes for one in files),
        memory_bytes=predicted.memory_bytes,
        memory_is="estimated",
    )


def refuse_taken(out: Path) -> None:
    """Raises Conflict where ``out`` holds something, InvalidInput where its parent is no folder."""
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"--out {out}: {out.absolute().parent} is no folder; make it first", param="out")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise Conflict(f"--out {out} is there already: remove it, or name another folder", param="out")


@contextmanager
def folder_for(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to fill and rename; what a killed process left there is cleared.

    Raises Conflict where another process is making it.
    """
    out = out.absolute()
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    staging = out.with_name(f".{out.name}.partial")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Conflict(f"another process is making {out}", param="out") from None
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        refuse_taken(out)
        if out.exists():
            out.rmdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
