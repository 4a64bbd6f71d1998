"""Names to versions to bundles, with movable aliases and the lineage of parents.

The database says what exists; the store holds the bytes. A bundle enters the store before the database names
it, and leaves the database before the store drops it: whenever a process dies, nothing half is listed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from everlearn.blobs import open_store
from everlearn.bundle import SERVABLE, BundleManifest, open_bundle
from everlearn.contents import check_name, list_files, refuse_hard_links
from everlearn.database import AliasRow, ModelRow, ReplicaRow, VersionRow, open_database, write
from everlearn.errors import Conflict, NotFound
from everlearn.reference import Reference, check_alias, parse_reference
from everlearn.settings import Settings
from everlearn.staging import staging_directory, sweep_staging
from everlearn.suggest import did_you_mean

CHAMPION = "champion"
PREVIOUS = "previous"
# A replica without a heartbeat for this long is no reason to keep its bundle.
REPLICA_SILENT_S = 30

log = structlog.stdlib.get_logger("everlearn.registry")


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
    def task(self) -> str:
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


@dataclass(frozen=True)
class Collected:
    """What a garbage collection removed."""

    bundles: tuple[str, ...]
    staging: int


class Registry:
    """The models of one installation. Safe to use from several processes and threads at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = open_database(settings)
        self._store = open_store(settings)
        sweep_staging(settings.directory("tmp"))

    # Adding ------------------------------------------------------------------------------------------------

    def staging(self) -> AbstractContextManager[Path]:
        """A private folder to build a bundle in; it is gone at the end, the bundle if added is not."""
        return staging_directory(self.settings.directory("tmp"))

    def add(self, directory: Path, model: str) -> Version:
        """Registers the bundle in ``directory`` as the next version of ``model``.

        A directory from :meth:`staging` is moved, any other is copied. The first servable version becomes
        champion. Raises Corrupt or InvalidInput naming the file at fault, Conflict.
        """
        check_name(model, "a model's name")
        if directory.absolute().is_relative_to(self.settings.directory("tmp")):
            return self._add_own(directory, model)
        refuse_hard_links(directory, list_files(directory))
        with self.staging() as staging:
            shutil.copytree(directory, staging, symlinks=True, dirs_exist_ok=True)
            return self._add_own(staging, model)

    def _add_own(self, directory: Path, model: str) -> Version:
        refuse_hard_links(directory, list_files(directory))
        manifest = open_bundle(directory).manifest
        with self._store.arriving(directory, manifest) as settle, write(self.database) as connection:
            settle()  # no collection can come between this and the commit
            version = _insert(connection, model, manifest)
        log.info("version added", ref=version.ref, digest=version.digest, format=version.format)
        return version

    # Finding -----------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> Version:
        """The version of ``name``, ``name@3`` or ``name@alias``; of a bare name the champion, else the newest.

        Raises NotFound saying what exists, InvalidInput.
        """
        with self.database.connect() as connection:
            return _resolve(connection, parse_reference(ref))

    def list(self) -> Sequence[Model]:
        """Every model that has a version, by name."""
        with self.database.connect() as connection:
            names = connection.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model)).all()
            return [_model(connection, name) for name in names]

    def model(self, name: str) -> Model:
        """One model with its versions and aliases. Raises NotFound."""
        with self.database.connect() as connection:
            _resolve(connection, Reference(name))
            return _model(connection, name)

    def versions(self, model: str) -> Sequence[Version]:
        """From the newest to the oldest. Raises NotFound."""
        with self.database.connect() as connection:
            return _versions(connection, model) or _raise_unknown(connection, Reference(model))

    def aliases(self, model: str) -> dict[str, int]:
        """The version that each alias of ``model`` stands for."""
        with self.database.connect() as connection:
            return _aliases(connection, model)

    def lineage(self, ref: str) -> Sequence[Version]:
        """The version, its parent, the parent's parent, as far as they are registered here."""
        with self.database.connect() as connection:
            line = [_resolve(connection, parse_reference(ref))]
            while parent := line[-1].parent_digest:
                query = select(VersionRow.__table__).where(VersionRow.digest == parent)
                row = connection.execute(query.order_by(VersionRow.created_at).limit(1)).first()
                if row is None:
                    break
                line.append(_version(row))
            return line

    def path(self, version: Version) -> Path:
        """The verified bundle on this machine, fetched from a remote store where need be.

        Raises Corrupt naming the file that is not what was registered.
        """
        return self._store.local(version.manifest)

    def verify(self, version: Version) -> None:
        """Reads every byte again, verified before or not. Raises Corrupt naming the file."""
        self._store.reread(version.manifest)

    # Aliases -----------------------------------------------------------------------------------------------

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Moves ``alias``, or makes it. Raises NotFound, InvalidInput."""
        check_alias(alias)
        with write(self.database) as connection:
            _resolve(connection, Reference(model, version))
            _put_alias(connection, model, alias, version)

    def remove_alias(self, model: str, alias: str) -> None:
        """Raises NotFound."""
        with write(self.database) as connection:
            _resolve(connection, Reference(model, check_alias(alias)))
            connection.execute(delete(AliasRow).where(AliasRow.model == model, AliasRow.alias == alias))

    def promote(self, ref: str) -> Version:
        """Makes a version the champion, and the former champion ``previous``, in one step."""
        with write(self.database) as connection:
            version = _resolve(connection, parse_reference(ref))
            former = _promote(connection, version)
        log.info("version promoted", ref=version.ref, former=former)
        return version

    def rollback(self, model: str) -> Version:
        """Undoes the last promotion: champion and ``previous`` change places. Raises Conflict without one."""
        with write(self.database) as connection:
            _resolve(connection, parse_reference(model))
            if PREVIOUS not in _aliases(connection, model):
                raise Conflict(f"{model} has no previous champion to go back to", param="model")
            version = _resolve(connection, Reference(model, PREVIOUS))
            former = _promote(connection, version)
        log.info("promotion undone", ref=version.ref, former=former)
        return version

    # Removing ----------------------------------------------------------------------------------------------

    def delete(self, ref: str) -> Sequence[Version]:
        """Removes a version, or with a bare name the model and all its versions; bytes go with :meth:`collect`.

        Raises Conflict naming the alias, the child or the running engine that still needs it.
        """
        reference = parse_reference(ref)
        with write(self.database) as connection:
            version = _resolve(connection, reference)
            doomed = _versions(connection, version.model) if reference.version is None else [version]
            for one in doomed:
                _refuse_needed(connection, one, doomed, whole=reference.version is None)
            if reference.version is None:
                connection.execute(delete(AliasRow).where(AliasRow.model == version.model))
            for one in doomed:
                row = (VersionRow.model == one.model) & (VersionRow.version == one.version)
                connection.execute(delete(VersionRow).where(row))
        log.info("versions deleted", refs=[one.ref for one in doomed])
        return doomed

    def collect(self) -> Collected:
        """Removes the bundles that no version names, and the staging folders of processes that are gone."""
        cleared = sweep_staging(self.settings.directory("tmp"))
        removed: list[str] = []
        for digest in tuple(self._store.digests()):
            with write(self.database) as connection:  # no version of it can be added meanwhile
                if not connection.scalar(select(func.count()).where(VersionRow.digest == digest)):
                    self._store.remove(digest)
                    removed.append(digest)
        log.info("garbage collected", bundles=len(removed), staging=cleared)
        return Collected(tuple(removed), cleared)


def _insert(connection: Connection, model: str, manifest: BundleManifest) -> Version:
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
    if manifest.format in SERVABLE and CHAMPION not in _aliases(connection, model):
        _put_alias(connection, model, CHAMPION, number)
    return Version(model, number, manifest, now)


def _resolve(connection: Connection, reference: Reference) -> Version:
    number = reference.version
    if not isinstance(number, int):
        aliases = _aliases(connection, reference.model)
        number = aliases.get(number or CHAMPION)
        if number is None and reference.version is None:
            newest = select(func.max(VersionRow.version)).where(VersionRow.model == reference.model)
            number = connection.scalar(newest)
    where = (VersionRow.model == reference.model) & (VersionRow.version == number)
    row = connection.execute(select(VersionRow.__table__).where(where)).first()
    return _version(row) if row else _raise_unknown(connection, reference)


def _raise_unknown(connection: Connection, reference: Reference) -> NoReturn:
    """Says what there is instead."""
    names = connection.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model)).all()
    if reference.model in names:
        versions = [version.version for version in _versions(connection, reference.model)]
        known = [*_aliases(connection, reference.model), *map(str, reversed(versions))]
        there = ", ".join(f"{reference.model}@{one}" for one in known[:10])
        raise NotFound(f"there is no {reference}; there is {there}", param="model")
    hint = did_you_mean(reference.model, names)
    there = f"there is {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}"
    if not names:
        there = "none is registered yet: `everlearn import smollm2` brings one"
    raise NotFound(f"there is no model {reference.model!r}{hint or '; ' + there}", param="model")


def _refuse_needed(connection: Connection, version: Version, doomed: Sequence[Version], whole: bool) -> None:
    if not whole:
        held = [
            name for name, number in _aliases(connection, version.model).items() if number == version.version
        ]
        if held:
            raise Conflict(f"{version.ref} is {' and '.join(held)}: move that alias first", param="alias")
    going = {(one.model, one.version) for one in doomed}
    same = select(VersionRow.model, VersionRow.version).where(VersionRow.digest == version.digest)
    if {(row.model, row.version) for row in connection.execute(same)} <= going:
        children = select(VersionRow.__table__).where(VersionRow.parent_digest == version.digest)
        staying = [_version(row) for row in connection.execute(children)]
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


def _promote(connection: Connection, version: Version) -> int | None:
    """Returns the former champion."""
    former = _aliases(connection, version.model).get(CHAMPION)
    if former not in (None, version.version):
        _put_alias(connection, version.model, PREVIOUS, former)
    _put_alias(connection, version.model, CHAMPION, version.version)
    return former


def _put_alias(connection: Connection, model: str, alias: str, version: int) -> None:
    connection.execute(delete(AliasRow).where(AliasRow.model == model, AliasRow.alias == alias))
    values = {"model": model, "alias": alias, "version": version, "updated_at": time.time()}
    connection.execute(insert(AliasRow).values(values))


def _aliases(connection: Connection, model: str) -> dict[str, int]:
    query = select(AliasRow.alias, AliasRow.version).where(AliasRow.model == model).order_by(AliasRow.alias)
    return {alias: version for alias, version in connection.execute(query)}


def _versions(connection: Connection, model: str) -> list[Version]:
    query = select(VersionRow.__table__).where(VersionRow.model == model).order_by(VersionRow.version.desc())
    return [_version(row) for row in connection.execute(query)]


def _model(connection: Connection, name: str) -> Model:
    return Model(name, tuple(_versions(connection, name)), _aliases(connection, name))


def _version(row: Row[tuple[object, ...]]) -> Version:
    manifest = BundleManifest.model_validate(row.bundle)
    return Version(row.model, row.version, manifest, row.created_at)
