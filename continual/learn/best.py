"""The gate's memory: the best score a model ever had on each domain, kept with the promoted bundles.

Of every promoted bundle there is, for each held example, what the best version of its line scored there. The line is
what the bundle was made from: so a rollback goes back to what was best then, and not to what was rolled back. Scores
are kept by example, so that whatever is evicted or deleted, those that remain can be compared. Float weights and what
is served have digests of their own, hence memories of their own: their scores are never mixed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from continual.recipe import GENERAL
from everlearn.registry.audit import record
from everlearn.registry.tables import BestScoreRow, ReplayExampleRow, VersionRow

KEPT_BUNDLES = 16
"""Of so many promoted bundles of a model the memory is kept: eight promotions of weights with what is served."""


@dataclass(frozen=True)
class Best:
    """``version`` (a ref) scored ``nll`` nats over ``tokens`` targets of one held example of a domain."""

    domain: str
    nll: float
    tokens: int
    version: str


@dataclass(frozen=True)
class Scored:
    """One held example in the gate: its best so far, ``remembered`` or the champion's, and the candidate's score.

    ``best`` None: the job's own, which the candidate is the first to have learned.
    """

    domain: str
    sha256: str
    tokens: int
    candidate: float
    best: Best | None = None
    remembered: bool = False


def recall(connection: Connection, model: str, digest: str) -> dict[str, Best]:
    """By example's hash, what is remembered of a bundle, or else of the nearest that it was made from; or nothing.

    Only bundles of the same format are asked: what quantization costs is no forgetting.
    """
    table = BestScoreRow
    seen: set[str] = set()
    format, current = _made_from(connection, digest)[0], digest
    while current not in seen:
        rows = connection.execute(
            select(table.sha256, table.domain, table.nll, table.tokens, table.version).where(
                table.model == model, table.digest == current
            )
        ).all()
        if rows:
            return {sha256: Best(*rest) for sha256, *rest in rows}
        seen.add(current)
        _, parent = _made_from(connection, current)
        if parent is None or _made_from(connection, parent)[0] != format:
            break
        current = parent
    return {}


def _made_from(connection: Connection, digest: str) -> tuple[str | None, str | None]:
    """A bundle's format and its parent's digest."""
    query = select(VersionRow.format, VersionRow.parent_digest).where(VersionRow.digest == digest)
    row = connection.execute(query.limit(1)).first()
    return (row.format, row.parent_digest) if row else (None, None)


def remember(
    connection: Connection, model: str, digest: str, ref: str, former: str, scored: Sequence[Scored]
) -> None:
    """Writes the memory of the bundle ``digest``, promoted as ``ref``, from that of ``former``, the champion's.

    Call it once the buffer holds what it shall: of what is not held, nothing is remembered. A best that was reset while
    the job ran stays reset, and the new version's score begins it.
    """
    table = BestScoreRow
    before = recall(connection, model, former)
    rows = dict(before)
    for domain in {one.domain for one in scored}:
        mine = [one for one in scored if one.domain == domain]
        was_reset = all(one.sha256 not in before for one in mine if one.remembered)
        was_reset = was_reset and any(one.remembered for one in mine)
        better = sum(one.candidate - one.best.nll for one in mine if one.best) <= 0
        for one in mine:
            own = Best(domain, one.candidate, one.tokens, ref)
            rows[one.sha256] = own if better or was_reset or one.best is None else one.best
    held = select(ReplayExampleRow.sha256).where(
        ReplayExampleRow.model == model, ReplayExampleRow.split == "held"
    )
    alive = set(connection.scalars(held))
    connection.execute(delete(table).where(table.model == model, table.digest == digest))
    where = {"model": model, "digest": digest, "at": time.time()}
    kept = [
        where | {"sha256": sha256, **vars(best)}
        for sha256, best in rows.items()
        if best.domain == GENERAL or sha256 in alive
    ]
    if kept:
        connection.execute(insert(table), kept)
    _forget_old(connection, model)


def summary(memory: Mapping[str, Best]) -> dict[str, dict[str, Any]]:
    """By domain: ``nats`` per token, ``version`` or versions that scored them, and over how many ``examples``."""
    found: dict[str, dict[str, Any]] = {}
    for domain in sorted({best.domain for best in memory.values()}):
        mine = [best for best in memory.values() if best.domain == domain]
        found[domain] = {
            "nats": sum(best.nll for best in mine) / max(sum(best.tokens for best in mine), 1),
            "version": ", ".join(sorted({best.version for best in mine})),
            "examples": len(mine),
        }
    return found


def domains_of(connection: Connection, model: str) -> list[str]:
    """Those of which anything is remembered."""
    table = BestScoreRow
    query = select(table.domain).where(table.model == model).distinct().order_by(table.domain)
    return list(connection.scalars(query))


def reset(connection: Connection, model: str, domains: Sequence[str], *, actor: str | None = None) -> int:
    """Forgets what was best on domains: the present champion's scores begin it anew. Returns of how many examples."""
    table = BestScoreRow
    mine = (table.model == model) & table.domain.in_(domains)
    examples = connection.scalar(select(func.count(table.sha256.distinct())).where(mine)) or 0
    connection.execute(delete(table).where(mine))
    record(connection, actor, "best.reset", model, domains=list(domains), examples=examples)
    return examples


def forget_examples(connection: Connection, model: str, hashes: Sequence[str]) -> None:
    """What is no longer held is not remembered either."""
    for start in range(0, len(hashes), 500):
        part = hashes[start : start + 500]
        connection.execute(
            delete(BestScoreRow).where(BestScoreRow.model == model, BestScoreRow.sha256.in_(part))
        )


def _forget_old(connection: Connection, model: str) -> None:
    table = BestScoreRow
    newest = select(table.digest).where(table.model == model).group_by(table.digest)
    order = newest.order_by(func.max(table.at).desc(), table.digest)
    doomed = connection.scalars(order).all()[KEPT_BUNDLES:]
    connection.execute(delete(table).where(table.model == model, table.digest.in_(doomed)))
