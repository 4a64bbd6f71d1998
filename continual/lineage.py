"""From a version back to all that it was made of, and from a file on to every version that learnt from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select

from continual.queue.states import Job, to_job
from everlearn.errors import NotFound
from everlearn.registry.database import read
from everlearn.registry.records import Version, aliases_of, version_of
from everlearn.registry.registry import Registry
from everlearn.registry.tables import ApiKey, FileRow, JobRow, ReplayExampleRow, VersionRow

MADE_BY = {
    "import": "import",
    "train": "train",
    "continual": "job",
    "export": "compress",
    "distill": "distill",
}
"""A key of a version's recipe, and the command that writes it."""


@dataclass(frozen=True)
class UsedFile:
    """A file as a job's row names it; ``name`` and ``sha256`` None where nothing is known of it any more."""

    role: str
    id: str
    name: str | None
    sha256: str | None
    deleted: bool


@dataclass(frozen=True)
class Lesson:
    """The job that taught a version. ``gates`` are as in the job's report; ``key``: the name of the key that asked."""

    job: str
    state: str
    key: str | None
    domain: str | None
    files: tuple[UsedFile, ...]
    trained_tokens: int | None
    finished_at: float | None
    gates: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """One version of a line. ``made_by``: a command, or ``job``."""

    ref: str
    aliases: tuple[str, ...]
    digest: str
    format: str
    size_bytes: int
    created_at: float
    made_by: str
    recipe: dict[str, Any]
    lesson: Lesson | None


@dataclass(frozen=True)
class Learner:
    """A version that a file went into: ``why`` says how, or which version it was made of."""

    ref: str
    aliases: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Trace:
    """Where the bytes of a file went: jobs (also those that nothing came of), versions, and by model the examples of it
    in the replay buffer."""

    sha256: str
    lessons: tuple[Lesson, ...]
    versions: tuple[Learner, ...]
    replayed: dict[str, int]


def lineage(registry: Registry, ref: str) -> Sequence[Origin]:
    """The version, what it was made of, and so on to the first that is registered here. Raises NotFound."""
    line = registry.lineage(ref)
    with read(registry.database) as connection:
        return [_origin(connection, version) for version in line]


def trace(registry: Registry, sha256: str) -> Trace:
    """What came of the bytes with this hash, as files of jobs or named by a recipe. Raises NotFound: they are unknown."""
    with read(registry.database) as connection:
        file_ids = connection.scalars(select(FileRow.id).where(FileRow.sha256 == sha256)).all()
        jobs = _jobs(
            connection, or_(JobRow.training_file.in_(file_ids), JobRow.validation_file.in_(file_ids))
        )
        versions = [version_of(row) for row in connection.execute(select(VersionRow.__table__))]
        why = {
            one.ref: "its recipe names the file"
            for one in versions
            if sha256 in json.dumps(one.manifest.recipe)
        }
        for job in jobs:
            role = "trained on" if job.training_file in file_ids else "measured on"
            for version in _taught(job, versions):
                why[version.ref] = f"{role} it: {job.id}"
        if not (file_ids or why):
            raise NotFound(f"no job and no recipe here knows a file with the hash {sha256[:80]}")
        for parent, child in _descent(versions, why):
            why[child.ref] = f"made of {parent.ref}"
        counts = (
            select(ReplayExampleRow.model, func.count())
            .where(ReplayExampleRow.job_id.in_([job.id for job in jobs]))
            .group_by(ReplayExampleRow.model)
        )
        return Trace(
            sha256,
            tuple(_lesson(connection, job) for job in jobs),
            tuple(
                Learner(one.ref, _aliases(connection, one), why[one.ref])
                for one in versions
                if one.ref in why
            ),
            {model: count for model, count in connection.execute(counts)},
        )


def _origin(connection: Connection, version: Version) -> Origin:
    recipe = version.manifest.recipe
    job = _job_of(connection, version)
    by = next((command for key, command in MADE_BY.items() if key in recipe), ", ".join(recipe) or "unknown")
    return Origin(
        ref=version.ref,
        aliases=_aliases(connection, version),
        digest=version.digest,
        format=version.format,
        size_bytes=version.manifest.size_bytes,
        created_at=version.created_at,
        made_by=by,
        recipe=recipe,
        lesson=job and _lesson(connection, job),
    )


def _aliases(connection: Connection, version: Version) -> tuple[str, ...]:
    named = aliases_of(connection, version.model)
    return tuple(name for name, number in named.items() if number == version.version)


def _job_of(connection: Connection, version: Version) -> Job | None:
    """The job whose result is the version, or, of float weights that a job taught, what was compressed of it."""
    refs = [version.ref]
    if "continual" in version.manifest.recipe:
        children = select(VersionRow.__table__).where(VersionRow.parent_digest == version.digest)
        refs += [version_of(row).ref for row in connection.execute(children)]
    return next(iter(_jobs(connection, JobRow.result_model.in_(refs))), None)


def _taught(job: Job, versions: Iterable[Version]) -> Iterable[Version]:
    """The version that a job made, and the float weights that this was compressed of."""
    made = next((one for one in versions if one.ref == job.result_model), None)
    if made is None:
        return
    yield made
    if "continual" not in made.manifest.recipe:
        yield from (one for one in versions if one.digest == made.parent_digest)


def _descent(versions: Sequence[Version], known: Mapping[str, str]) -> Iterable[tuple[Version, Version]]:
    """Each version that is not ``known`` and was made of one that is, after the one it was made of."""
    reached = {one.digest: one for one in versions if one.ref in known}
    seen = set(known)
    while found := [one for one in versions if one.ref not in seen and one.parent_digest in reached]:
        for child in found:
            yield reached[str(child.parent_digest)], child
            seen.add(child.ref)
        reached |= {child.digest: child for child in found}


def _jobs(connection: Connection, where: Any) -> list[Job]:
    query = select(JobRow.__table__).where(where).order_by(JobRow.created_at, JobRow.id)
    return [to_job(row) for row in connection.execute(query)]


def _lesson(connection: Connection, job: Job) -> Lesson:
    files = [("training", job.training_file), ("validation", job.validation_file)]
    return Lesson(
        job=job.id,
        state=job.state,
        key=connection.scalar(select(ApiKey.name).where(ApiKey.id == job.key_id)) if job.key_id else None,
        domain=(job.report or {}).get("domain") or job.recipe.get("domain"),
        files=tuple(_used(connection, role, id) for role, id in files if id),
        trained_tokens=job.trained_tokens,
        finished_at=job.finished_at,
        gates=(job.report or {}).get("gates", {}),
    )


def _used(connection: Connection, role: str, id: str) -> UsedFile:
    row = connection.execute(select(FileRow.__table__).where(FileRow.id == id)).first()
    if row is None:
        return UsedFile(role, id, None, None, True)
    return UsedFile(role, id, row.filename, row.sha256, row.deleted_at is not None)


def hash_of(registry: Registry, file_id: str) -> str:
    """The hash of an uploaded file, also of one that was deleted. Raises NotFound."""
    with read(registry.database) as connection:
        found = connection.scalar(select(FileRow.sha256).where(FileRow.id == file_id))
    if found is None:
        raise NotFound(f"there is no file {file_id[:80]!r}", param="file")
    return found
