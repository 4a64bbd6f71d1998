"""The registry: names to versions to bundles, with movable aliases and the lineage of parents.

The database says what exists; the store holds the bytes. A bundle enters the store before the database names
it, and leaves the database before the store drops it: whenever a process dies, nothing half is listed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Connection, delete, func, select

from everlearn.bundles.bundle import open_bundle
from everlearn.bundles.contents import check_name, list_files, refuse_hard_links
from everlearn.bundles.reference import Reference, check_alias, parse_reference
from everlearn.bundles.staging import staging_directory, sweep_staging
from everlearn.errors import Conflict, InvalidInput, NotFound, Unsupported
from everlearn.registry.audit import record
from everlearn.registry.blobs import open_store
from everlearn.registry.database import open_database, read, write
from everlearn.registry.records import (
    CHAMPION,
    PREVIOUS,
    TRIALS,
    Model,
    Trial,
    Version,
    aliases_of,
    drop_alias,
    find_version,
    insert_version,
    model_of,
    move_champion,
    put_alias,
    raise_unknown,
    refuse_needed,
    remove_champion,
    version_of,
    versions_of,
)
from everlearn.registry.tables import AliasRow, VersionRow
from everlearn.settings import Settings

log = structlog.stdlib.get_logger("everlearn.registry")

Within = Callable[[Connection, Version], None]
"""More to do in the transaction that registers a version."""


@dataclass(frozen=True)
class Collected:
    """What a garbage collection removed."""

    bundles: tuple[str, ...]
    staging: int


class Registry:
    """The models of one installation. Safe to use from several processes and threads at once.

    ``actor``: who acts, as :func:`everlearn.registry.audit.record` takes it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = open_database(settings)
        self._store = open_store(settings)
        sweep_staging(settings.directory("tmp"))

    # Adding ------------------------------------------------------------------------------------------------

    def staging(self) -> AbstractContextManager[Path]:
        """A private folder to build a bundle in; it is gone at the end, the bundle if added is not."""
        return staging_directory(self.settings.directory("tmp"))

    def add(self, directory: Path, model: str, *, within: Within | None = None) -> Version:
        """Registers the bundle in ``directory`` as the next version of ``model``.

        A directory from :meth:`staging` is moved, any other is copied. The first servable version becomes
        champion. ``within`` is called inside the registering transaction, so that what it writes and the
        version are committed together, and nothing is where it raises.
        Raises Corrupt or InvalidInput naming the file at fault, Conflict.
        """
        check_name(model, "a model's name")
        if directory.absolute().is_relative_to(self.settings.directory("tmp")):
            return self._add_own(directory, model, within)
        refuse_hard_links(directory, list_files(directory))
        with self.staging() as staging:
            shutil.copytree(directory, staging, symlinks=True, dirs_exist_ok=True)
            return self._add_own(staging, model, within)

    def _add_own(self, directory: Path, model: str, within: Within | None) -> Version:
        refuse_hard_links(directory, list_files(directory))
        manifest = open_bundle(directory).manifest
        with self._store.arriving(directory, manifest) as settle, write(self.database) as connection:
            settle()  # no collection can come between this and the commit
            version = insert_version(connection, model, manifest)
            if within:
                within(connection, version)
        log.info("version added", ref=version.ref, digest=version.digest, format=version.format)
        return version

    # Finding -----------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> Version:
        """The version of ``name``, ``name@3`` or ``name@alias``; of a bare name the champion, else the newest.

        Raises NotFound saying what exists, InvalidInput.
        """
        with read(self.database) as connection:
            return find_version(connection, parse_reference(ref))

    def list(self) -> Sequence[Model]:
        """Every model that has a version, by name."""
        with read(self.database) as connection:
            names = connection.scalars(select(VersionRow.model).distinct().order_by(VersionRow.model)).all()
            return [model_of(connection, name) for name in names]

    def model(self, name: str) -> Model:
        """One model with its versions and aliases. Raises NotFound."""
        with read(self.database) as connection:
            find_version(connection, Reference(name))
            return model_of(connection, name)

    def versions(self, model: str) -> Sequence[Version]:
        """From the newest to the oldest. Raises NotFound."""
        with read(self.database) as connection:
            return versions_of(connection, model) or raise_unknown(connection, Reference(model))

    def aliases(self, model: str) -> dict[str, int]:
        """The version that each alias of ``model`` stands for."""
        with read(self.database) as connection:
            return aliases_of(connection, model)

    def lineage(self, ref: str) -> Sequence[Version]:
        """The version, its parent, the parent's parent, as far as they are registered here."""
        with read(self.database) as connection:
            line = [find_version(connection, parse_reference(ref))]
            while parent := line[-1].parent_digest:
                query = select(VersionRow.__table__).where(VersionRow.digest == parent)
                row = connection.execute(query.order_by(VersionRow.created_at).limit(1)).first()
                if row is None:
                    break
                line.append(version_of(row))
            return line

    def weights(self, ref: str) -> Version:
        """The safetensors that training and compression start from: the version, or the nearest that it was made of.

        A reference with a number means that very version. Raises NotFound, Unsupported, saying what to do.
        """
        version, *earlier = self.lineage(ref)
        found = next((one for one in (version, *earlier) if one.format == "safetensors"), None)
        if found is None:
            raise NotFound(
                f"{version.ref} is {version.format}, and the safetensors it was made of are not here: import them",
                param="model",
            )
        if found != version and isinstance(parse_reference(ref).version, int):
            raise Unsupported(
                f"{version.ref} is {version.format}; its float weights are {found.ref}: name that",
                param="model",
            )
        return found

    def path(self, version: Version) -> Path:
        """The verified bundle on this machine, fetched from a remote store where need be.

        Raises Corrupt naming the file that is not what was registered.
        """
        return self._store.local(version.manifest)

    def verify(self, version: Version) -> None:
        """Reads every byte again, verified before or not. Raises Corrupt naming the file."""
        self._store.reread(version.manifest)

    # Aliases -----------------------------------------------------------------------------------------------

    def set_alias(self, model: str, alias: str, version: int, *, actor: str | None = None) -> None:
        """Moves ``alias``, or makes it; moving the champion is :meth:`promote`.

        Raises NotFound, InvalidInput, and Conflict where ``previous`` would be the champion.
        """
        check_alias(alias)
        if alias in TRIALS:
            raise InvalidInput(
                f"{alias} takes a share of the requests: `everlearn {alias} {model}@{version} --percent 10`",
                param="alias",
            )
        with write(self.database) as connection:
            found = find_version(connection, Reference(model, version))
            aliases = aliases_of(connection, model)
            former = aliases.get(alias)
            if alias == CHAMPION:
                move_champion(connection, found)
            elif alias == PREVIOUS and aliases.get(CHAMPION) == version:
                raise Conflict(
                    f"{found.ref} is the champion: previous is what a rollback goes back to", param="alias"
                )
            else:
                put_alias(connection, model, alias, version)
            record(connection, actor, "alias.set", f"{model}@{alias}", version=version, former=former)

    def remove_alias(self, model: str, alias: str, *, actor: str | None = None) -> None:
        """Without its champion, a model has that one as ``previous``. Raises NotFound."""
        with write(self.database) as connection:
            former = find_version(connection, Reference(model, check_alias(alias)))
            if alias == CHAMPION:
                remove_champion(connection, model)
            else:
                drop_alias(connection, model, alias)
            record(connection, actor, "alias.remove", f"{model}@{alias}", former=former.version)

    def promote(self, ref: str, *, actor: str | None = None) -> Version:
        """Makes a version the champion, and the former champion ``previous``, in one step."""
        with write(self.database) as connection:
            version = find_version(connection, parse_reference(ref))
            former = move_champion(connection, version)
            record(connection, actor, "promote", version.ref, former=former)
        log.info("version promoted", ref=version.ref, former=former)
        return version

    def rollback(self, model: str, *, actor: str | None = None) -> Version:
        """Undoes the last move of the champion: it and ``previous`` change places. Raises Conflict without one."""
        with write(self.database) as connection:
            find_version(connection, parse_reference(model))
            aliases = aliases_of(connection, model)
            if aliases.get(PREVIOUS) in (
                None,
                aliases.get(CHAMPION),
            ):  # an earlier everlearn left both on one
                raise Conflict(f"{model} has no previous champion to go back to", param="model")
            version = find_version(connection, Reference(model, PREVIOUS))
            former = move_champion(connection, version)
            record(connection, actor, "rollback", version.ref, former=former)
        log.info("promotion undone", ref=version.ref, former=former)
        return version

    # Trials ------------------------------------------------------------------------------------------------

    def try_out(self, ref: str, role: Trial, share: float, *, actor: str | None = None) -> Version:
        """Lets a version answer (canary), or hear (shadow), a ``share`` of its model's requests, 0 to 1.

        Raises NotFound, InvalidInput, Conflict.
        """
        if not 0 < share <= 1:
            raise InvalidInput(f"{share:.0%} of the requests: more than 0 and at most 100%", param="percent")
        with write(self.database) as connection:
            version = find_version(connection, parse_reference(ref))
            champion = find_version(connection, Reference(version.model, CHAMPION))
            if champion.version == version.version:
                raise Conflict(f"{version.ref} is the champion: there is nothing to try out", param="model")
            if champion.task != version.task:
                raise Conflict(
                    f"{version.ref} is for {version.task}, the champion for {champion.task}", param="model"
                )
            put_alias(connection, version.model, role, version.version, share)
            record(connection, actor, f"{role}.start", version.ref, share=share)
        log.info(f"{role} set", ref=version.ref, share=share)
        return version

    def end_trial(self, model: str, role: Trial, *, actor: str | None = None) -> Version:
        """Raises NotFound when there is no such trial."""
        with write(self.database) as connection:
            version = find_version(connection, Reference(model, role))
            drop_alias(connection, model, role)
            record(connection, actor, f"{role}.end", version.ref)
        log.info(f"{role} ended", ref=version.ref)
        return version

    # Removing ----------------------------------------------------------------------------------------------

    def delete(self, ref: str, *, actor: str | None = None) -> Sequence[Version]:
        """Removes a version, or with a bare name the model and all its versions; bytes go with :meth:`collect`.

        Raises Conflict naming the alias, the child or the running engine that still needs it.
        """
        reference = parse_reference(ref)
        with write(self.database) as connection:
            version = find_version(connection, reference)
            doomed = versions_of(connection, version.model) if reference.version is None else [version]
            for one in doomed:
                refuse_needed(connection, one, doomed, whole=reference.version is None)
            if reference.version is None:
                connection.execute(delete(AliasRow).where(AliasRow.model == version.model))
            for one in doomed:
                row = (VersionRow.model == one.model) & (VersionRow.version == one.version)
                connection.execute(delete(VersionRow).where(row))
                record(connection, actor, "version.delete", one.ref, digest=one.digest)
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
