"""The replay buffer: of every domain a model was taught, a bounded sample to train on again and to measure on.

It lies in the main database, so that a promotion and its insertion are one transaction. Each domain is a
reservoir kept as a bottom-k sample (Cohen & Kaplan 2007): an example's priority is a hash of its content, and
those of lowest priority stay. So the sample is uniform over all that was ever inserted, whatever the order, the
same example is kept once, and inserting again changes nothing. What is measured on is spread over documents: of each
one example stays before any second one, and of some documents at least.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select

from continual.learn.best import forget_examples
from continual.learn.reservoir import Held, content_sha256, lowest, lowest_held, priority, target_mask
from continual.recipe import MIN_DOCUMENTS
from everlearn.registry.audit import record
from everlearn.registry.tables import ReplayExampleRow, ReplayInsertionRow
from train.data.store import Example

Split = Literal["train", "held"]
DELETED = "deleted"
"""The split of what stands for a deleted example: nothing but its hash, so that it never comes back."""


@dataclass(frozen=True)
class ReplayExample:
    """An example in the buffer; ``sha256`` names its content.

    ``document``: the hash of the document that it is a part of; where that was not written down, its own.
    """

    sha256: str
    domain: str
    example: Example
    document: str


@dataclass
class Reading:
    """What was read. ``corrupt`` are the hashes of rows that are not what was written: skipped."""

    kept: list[ReplayExample] = field(default_factory=list[ReplayExample])
    corrupt: list[str] = field(default_factory=list[str])

    @property
    def tokens(self) -> int:
        return sum(len(kept.example) for kept in self.kept)

    def by_domain(self) -> dict[str, list[ReplayExample]]:
        domains: dict[str, list[ReplayExample]] = {}
        for kept in self.kept:
            domains.setdefault(kept.domain, []).append(kept)
        return domains


@dataclass(frozen=True)
class Arrival:
    """Examples of one domain and split, with the number of tokens that the buffer keeps of them.

    ``documents``: of each example the hash of the document that it is a part of, where the split is "held".
    """

    domain: str
    split: Split
    examples: Sequence[Example]
    limit_tokens: int
    documents: Sequence[str] = ()


def read_buffer(connection: Connection, model: str, split: Split, domain: str | None = None) -> Reading:
    """All of a split, by priority; of one domain or of every one. Rows that are not what was written are skipped."""
    table = ReplayExampleRow
    query = select(table.sha256, table.domain, table.document, table.content).where(
        table.model == model, table.split == split
    )
    if domain is not None:
        query = query.where(table.domain == domain)
    reading = Reading()
    found = connection.execute(query.order_by(table.priority, table.sha256))
    for sha256, row_domain, document, content in found:
        example = _example(content)
        if example is None or content_sha256(example) != sha256:
            reading.corrupt.append(sha256)
        else:
            reading.kept.append(ReplayExample(sha256, row_domain, example, document or sha256))
    return reading


def sample(connection: Connection, model: str, domain: str, tokens: int, seed: int) -> Reading:
    """About ``tokens`` of a domain's examples to train on, uniformly and as ``seed`` decides."""
    reading = read_buffer(connection, model, "train", domain)
    chosen = dict(lowest([kept.example for kept in reading.kept], tokens, salt=f"sample {seed}"))
    there = {kept.sha256: kept for kept in reading.kept}
    return Reading([there[sha256] for sha256 in chosen], reading.corrupt)


def sizes(connection: Connection, model: str) -> dict[str, dict[str, int]]:
    """Tokens that the buffer holds, by domain and split."""
    table = ReplayExampleRow
    query = (
        select(table.domain, table.split, func.sum(table.tokens))
        .where(table.model == model, table.split != DELETED)
        .group_by(table.domain, table.split)
        .order_by(table.domain, table.split)
    )
    found: dict[str, dict[str, int]] = {}
    for domain, split, tokens in connection.execute(query):
        found.setdefault(domain, {})[split] = int(tokens)
    return found


def hashes(connection: Connection, model: str, split: str, domain: str | None = None) -> set[str]:
    """The hashes of a split's examples, ``deleted`` included; of one domain or of every one."""
    table = ReplayExampleRow
    query = select(table.sha256).where(table.model == model, table.split == split)
    return set(connection.scalars(query if domain is None else query.where(table.domain == domain)))


def insert_examples(
    connection: Connection, model: str, job_id: str, domain: str, arrivals: Sequence[Arrival]
) -> dict[str, Any]:
    """One job's insertion; a second one of the same job changes nothing. Returns what it did, as JSON.

    What was deleted does not come back, and an example is in one domain and one split alone, never both trained
    and measured on: the first that it came to.
    """
    table = ReplayInsertionRow
    done = connection.scalar(select(table.counts).where(table.model == model, table.job_id == job_id))
    if done is not None:
        return done
    counts = {f"{one.domain}/{one.split}": _insert(connection, model, job_id, one) for one in arrivals}
    row = {"model": model, "job_id": job_id, "domain": domain, "at": time.time(), "counts": counts}
    connection.execute(insert(ReplayInsertionRow).values(row))
    return counts


def delete_example(connection: Connection, model: str, sha256: str, *, actor: str | None = None) -> int:
    """Removes an example's content for good; returns how many rows held it. It stays away if it comes again."""
    table = ReplayExampleRow
    mine = (table.model == model) & (table.sha256 == sha256)
    removed = connection.execute(delete(table).where(mine, table.split != DELETED)).rowcount
    if not connection.scalar(select(func.count()).select_from(table).where(mine)):
        empty = {"domain": "", "split": DELETED, "job_id": "", "tokens": 0, "priority": 1.0, "content": {}}
        connection.execute(insert(table).values(model=model, sha256=sha256, **empty))
    forget_examples(connection, model, [sha256])
    record(connection, actor, "replay.delete", model, sha256=sha256, rows=removed)
    return removed


def _insert(connection: Connection, model: str, job_id: str, arrival: Arrival) -> dict[str, int]:
    known = hashes(connection, model, arrival.split)
    own = hashes(connection, model, arrival.split, arrival.domain)
    other = hashes(connection, model, "held" if arrival.split == "train" else "train")
    gone = hashes(connection, model, DELETED)
    without = (known - own) | other | gone
    rows = [_row(model, job_id, arrival, one) for one in _chosen(arrival, without) if one.sha256 not in known]
    if rows:
        connection.execute(insert(ReplayExampleRow), rows)
    return {
        "offered": len(arrival.examples),
        "inserted": len(rows),
        "evicted": _evict(connection, model, arrival),
    }


def _chosen(arrival: Arrival, without: set[str]) -> list[Held]:
    if arrival.split == "held":
        return lowest_held(arrival.examples, arrival.documents, arrival.limit_tokens, without)
    chosen = lowest(arrival.examples, arrival.limit_tokens, without=without)
    return [Held(sha256, example, sha256, priority(sha256)) for sha256, example in chosen]


def _row(model: str, job_id: str, arrival: Arrival, one: Held) -> dict[str, Any]:
    return {
        "model": model,
        "domain": arrival.domain,
        "split": arrival.split,
        "sha256": one.sha256,
        "job_id": job_id,
        "document": one.document if arrival.documents else None,
        "tokens": len(one.example),
        "priority": one.priority,
        "content": _content(one.example),
    }


def _evict(connection: Connection, model: str, arrival: Arrival) -> int:
    table = ReplayExampleRow
    mine = (table.model == model, table.domain == arrival.domain, table.split == arrival.split)
    query = select(table.sha256, table.document, table.tokens).where(*mine)
    least = MIN_DOCUMENTS if arrival.split == "held" else 0  # as `lowest_held` chooses
    total, documents, doomed = 0, set[str](), list[str]()
    for sha256, document, tokens in connection.execute(query.order_by(table.priority, table.sha256)):
        its = document or sha256
        if total >= arrival.limit_tokens and (len(documents) >= least or its in documents):
            doomed.append(sha256)
            continue
        total += tokens
        documents.add(its)
    for start in range(0, len(doomed), 500):
        part = doomed[start : start + 500]
        connection.execute(delete(table).where(*mine, table.sha256.in_(part)))
    if arrival.split == "held":
        forget_examples(connection, model, doomed)
    return len(doomed)


def _content(example: Example) -> dict[str, Any]:
    """As JSON; ``targets`` are [start, stop) of each run of them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], target_mask(example).astype(np.int8), [0]])))
    runs = [[int(start), int(stop)] for start, stop in list(pairwise(edges))[::2]]
    return {"ids": np.asarray(example.ids).tolist(), "targets": runs}


def _example(content: Any) -> Example | None:
    """None where the content is not of this shape."""
    try:
        ids = np.array(content["ids"], dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, stop in content["targets"]:
            mask[start:stop] = True
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Example(ids, mask) if ids.ndim == 1 and len(ids) else None
