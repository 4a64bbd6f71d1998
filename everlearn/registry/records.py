"""Versions and aliases as rows of the database. Each function runs inside its caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from everlearn.bundles.bundle import SERVABLE, BundleManifest
from everlearn.bundles.reference import Reference
from everlearn.bundles.tasks import Task
from everlearn.errors import Conflict, NotFound
from everlearn.registry.tables import AliasRow, ModelRow, ReplicaRow, VersionRow
from everlearn.suggest import did_you_mean

CHAMPION = "champion"
PREVIOUS = "previous"
CANDIDATE = "candidate"
CANARY = "canary"
SHADOW = "shadow"
Trial = Literal["canary", "shadow"]
TRIALS: tuple[Trial, ...] = (CANARY, SHADOW)
"""Aliases with a share of the model's requests."""
# A replica without a heartbeat for this long is no reason to keep its bundle.
REPLICA_SILENT_S = 30


@dataclass(frozen=True)
class Version:
    """One bundle under one name."""

    model: str
    version: int
    manifest: BundleManifest
    created_at: float

    @property
    def ref(self) -> str:
        """``name@3``."""
        return f"{self.model}@{self.version}"

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def format(self) -> str:
        return self.manifest.format

    @property
    def task(self) -> Task:
        return self.manifest.task

    @property
    def parent_digest(self) -> str | None:
        return self.manifest.parent


@dataclass(frozen=True)
class Model:
    """A name, its versions from the newest to the oldest, and its aliases."""

    name: str
    versions: tuple[Version, ...]
    aliases: dict[str, int]


def insert_version(connection: Connection, model: str, manifest: BundleManifest) -> Version:
    now = time.time()
    last = connection.scalar(select(ModelRow.last_version).where(ModelRow.name == model))
    number = (last or 0) + 1
    if last is None:
        connection.execute(insert(ModelRow).values(name=model, created_at=now, last_version=number))
    else:
        connection.execute(update(ModelRow).where(ModelRow.name == model).values(last_version=number))
    connection.execute(
        insert(VersionRow).values(
            model=model,
            version=number,
            digest=manifest.digest,
            format=manifest.format,
            task=manifest.task,
            bundle=manifest.model_dump(mode="json"),
            parent_digest=manifest.parent,
            created_at=now,
        )
    )
    if manifest.format in SERVABLE and CHAMPION not in aliases_of(connection, model):
        put_alias(connection, model, CHAMPION, number)
    return Version(model, number, manifest, now)


def find_version(connection: Connection, reference: Reference) -> Version:
    number = reference.version
    if not isinstance(number, int):
        aliases = aliases_of(connection, reference.model)
        number = aliases.get(number or CHAMPION)
        if number is None and reference.version is None:
            newest = select(func.max(VersionRow.version)).where(VersionRow.model == reference.model)
            number = connection.scalar(newest)
    where = (VersionRow.model == reference.model) & (VersionRow.version == number)
    row = connection.execute(select(VersionRow.__table__).where(where)).first()
    return version_of(row) if row else raise_unknown(connection, reference)


def raise_unknown(connection: Connection, reference: Reference) -> NoReturn:
    """Says what there is instead."""
    names = connection.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model)).all()
    if reference.model in names:
        versions = [version.version for version in versions_of(connection, reference.model)]
        known = [*aliases_of(connection, reference.model), *map(str, reversed(versions))]
        there = ", ".join(f"{reference.model}@{one}" for one in known[:10])
        raise NotFound(f"there is no {reference}; there is {there}", param="model")
    hint = did_you_mean(reference.model, names)
    there = f"there is {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}"
    if not names:
        there = "none is registered yet: `everlearn import smollm2` brings one"
    raise NotFound(f"there is no model {reference.model!r}{hint or '; ' + there}", param="model")


def refuse_needed(connection: Connection, version: Version, doomed: Sequence[Version], whole: bool) -> None:
    if not whole:
        held = [
            name
            for name, number in aliases_of(connection, version.model).items()
            if number == version.version
        ]
        if held:
            raise Conflict(f"{version.ref} is {' and '.join(held)}: move that alias first", param="alias")
    going = {(one.model, one.version) for one in doomed}
    same = select(VersionRow.model, VersionRow.version).where(VersionRow.digest == version.digest)
    if {(row.model, row.version) for row in connection.execute(same)} <= going:
        children = select(VersionRow.__table__).where(VersionRow.parent_digest == version.digest)
        staying = [version_of(row) for row in connection.execute(children)]
        if needed := [child.ref for child in staying if (child.model, child.version) not in going]:
            raise Conflict(
                f"{version.ref} is the parent of {', '.join(needed)}: remove that first", param="parent"
            )
    running = select(ReplicaRow.id).where(
        ReplicaRow.model == version.model,
        ReplicaRow.version == version.version,
        ReplicaRow.state.in_(("starting", "ready", "draining")),
        ReplicaRow.heartbeat_at > time.time() - REPLICA_SILENT_S,
    )
    if connection.scalar(running.limit(1)):
        raise Conflict(f"{version.ref} is being served: stop that engine first", param="replica")


def move_champion(connection: Connection, version: Version) -> int | None:
    """Returns the former champion, which becomes ``previous``: that is never the champion itself.

    Whoever becomes champion is on trial no more.
    """
    aliases = aliases_of(connection, version.model)
    former = aliases.get(CHAMPION)
    if former not in (None, version.version):
        put_alias(connection, version.model, PREVIOUS, former)
    elif aliases.get(PREVIOUS) == version.version:
        drop_alias(connection, version.model, PREVIOUS)
    put_alias(connection, version.model, CHAMPION, version.version)
    for trial, number in aliases_of(connection, version.model).items():
        if trial in TRIALS and number == version.version:
            drop_alias(connection, version.model, trial)
    return former


def remove_champion(connection: Connection, model: str) -> None:
    """Leaves the model without one; the former champion becomes ``previous``, so that a rollback brings it back."""
    if (former := aliases_of(connection, model).get(CHAMPION)) is not None:
        put_alias(connection, model, PREVIOUS, former)
        drop_alias(connection, model, CHAMPION)


def put_alias(
    connection: Connection, model: str, alias: str, version: int, share: float | None = None
) -> None:
    drop_alias(connection, model, alias)
    values = {"model": model, "alias": alias, "version": version, "share": share, "updated_at": time.time()}
    connection.execute(insert(AliasRow).values(values))


def drop_alias(connection: Connection, model: str, alias: str) -> None:
    connection.execute(delete(AliasRow).where(AliasRow.model == model, AliasRow.alias == alias))


def aliases_of(connection: Connection, model: str) -> dict[str, int]:
    query = select(AliasRow.alias, AliasRow.version).where(AliasRow.model == model).order_by(AliasRow.alias)
    return {alias: version for alias, version in connection.execute(query)}


def versions_of(connection: Connection, model: str) -> list[Version]:
    query = select(VersionRow.__table__).where(VersionRow.model == model).order_by(VersionRow.version.desc())
    return [version_of(row) for row in connection.execute(query)]


def model_of(connection: Connection, name: str) -> Model:
    return Model(name, tuple(versions_of(connection, name)), aliases_of(connection, name))


def replica_state(row: ReplicaRow | Row[tuple[object, ...]]) -> str:
    """As the supervisor wrote it; ``silent`` when the supervisor has long written nothing."""
    silent = row.state != "failed" and row.heartbeat_at < time.time() - REPLICA_SILENT_S
    return "silent" if silent else row.state


def version_of(row: Row[tuple[object, ...]]) -> Version:
    manifest = BundleManifest.model_validate(row.bundle)
    return Version(row.model, row.version, manifest, row.created_at)
