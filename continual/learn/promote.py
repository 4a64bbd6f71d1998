"""The one transaction in which a job succeeds: or nothing of it happened.

The fence is checked, the served version registered, champion and previous moved, the job's examples put into the
buffer, what the gate measured remembered, and the job's row finished with its report. The float weights, which are the served version's parent, are
registered just before: without the rest they are one more version that nobody serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from continual.learn.best import Scored, remember
from continual.learn.plan import Plan
from continual.learn.replay import Arrival, insert_examples, sizes
from continual.queue.files import File, insert_file
from continual.queue.jobs import check_lease, finish_within
from continual.queue.states import Lease
from everlearn.bundles.bundle import read_manifest
from everlearn.bundles.reference import Reference
from everlearn.errors import Conflict
from everlearn.registry.audit import record
from everlearn.registry.records import (
    CANDIDATE,
    CHAMPION,
    Version,
    aliases_of,
    drop_alias,
    find_version,
    move_champion,
    put_alias,
)
from everlearn.registry.registry import Registry


@dataclass(frozen=True)
class MeasuredBundle:
    """A candidate's bundle, and what the gate measured of it on every held example."""

    bundle: Path
    scored: Sequence[Scored] = ()


class ChampionMoved(Conflict):
    """The champion is another one than the candidate was measured against."""

    code = "champion_moved"


def promote(
    registry: Registry,
    lease: Lease,
    plan: Plan,
    weights: MeasuredBundle,
    served: MeasuredBundle | None,
    arrivals: Sequence[Arrival],
    report: Mapping[str, Any],
    trained_tokens: int,
    figures: File,
) -> Version:
    """Registers and promotes the candidate, and lists the file of its ``figures``; ``served`` None where the float weights are what is served.
    Where the recipe says not to promote, it gets the alias candidate, and champion and buffer stay as they were.

    A bundle that an interrupted promotion registered is not registered twice.
    Raises LeaseLost, ChampionMoved, and what the registry raises; then nothing has changed.
    """

    actor = f"job {lease.job_id}"

    def remember_all(connection: Connection, version: Version) -> None:
        floats = registered.ref if registered else version.ref
        digest = read_manifest(weights.bundle).digest
        remember(connection, plan.model, digest, floats, plan.parent_digest, weights.scored)
        if served:
            remember(connection, plan.model, version.digest, version.ref, plan.champion_digest, served.scored)

    def finish(connection: Connection, version: Version) -> None:
        check_lease(connection, lease)
        refuse_other_champion(connection, plan)
        told = {**report, "result": version.ref}
        if plan.recipe.promote:
            former = move_champion(connection, version)
            record(connection, actor, "promote", version.ref, former=former)
            counts = insert_examples(connection, plan.model, lease.job_id, plan.domain, arrivals)
            remember_all(connection, version)
            told |= {"outcome": "promoted", "inserted": counts, "buffer": sizes(connection, plan.model)}
        else:
            stand_by(connection, version)
            record(connection, actor, "alias", version.ref, alias=CANDIDATE)
            told |= {"outcome": "candidate"}
        insert_file(connection, figures)
        finish_within(
            connection,
            lease,
            "succeeded",
            report=told,
            result_model=version.ref,
            trained_tokens=trained_tokens,
            result_file=figures.id,
        )

    registered: Version | None = None
    if served is None:
        return registry.add(weights.bundle, plan.model, within=finish)
    registered = find_digest(registry, plan.model, weights.bundle) or registry.add(
        weights.bundle, plan.model, within=lambda connection, _: check_lease(connection, lease)
    )
    try:
        return registry.add(served.bundle, plan.model, within=finish)
    except ChampionMoved:
        registry.delete(registered.ref, actor=actor)  # the job starts over: nobody will ever need them
        raise


def stand_by(connection: Connection, version: Version) -> None:
    """The version becomes the candidate, and not the champion either where the model has none."""
    put_alias(connection, version.model, CANDIDATE, version.version)
    if aliases_of(connection, version.model).get(CHAMPION) == version.version:
        drop_alias(connection, version.model, CHAMPION)


def find_digest(registry: Registry, model: str, bundle: Path) -> Version | None:
    """The version of ``model`` that is the bundle in this folder."""
    digest = read_manifest(bundle).digest
    return next((version for version in registry.versions(model) if version.digest == digest), None)


def refuse_other_champion(connection: Connection, plan: Plan) -> None:
    """Raises ChampionMoved. A model without a champion, none of its versions servable here, keeps its newest."""
    number = aliases_of(connection, plan.model).get(CHAMPION)
    if number is None:
        return
    champion = find_version(connection, Reference(plan.model, number))
    if champion.digest != plan.champion_digest:
        raise ChampionMoved(
            f"{plan.model}'s champion is {champion.ref} now; the candidate was taught and measured from "
            f"{plan.champion}"
        )
