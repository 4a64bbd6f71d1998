"""The demonstration's report: one HTML page that needs nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from continual.demo.naive import Record
from continual.demo.visitor import Visitor
from everlearn.bundles.durable import write_file

HUE_BETTER, HUE_WORSE = 150, 8
STRONGEST_NATS = 0.5
"""A change of the loss by this much gets the strongest colour."""


@dataclass(frozen=True)
class Taught:
    """One lesson as the page shows it. Gain and worst forgetting are the served model's, in nats per token."""

    domain: str
    title: str
    prompt: str
    before: str
    before_version: str
    after: str
    after_version: str
    new_tokens: int
    replayed_tokens: int
    tokens_per_s: float
    gain: float
    worst: float
    size_mb: float
    took: str


@dataclass(frozen=True)
class Outcome:
    """All that the run showed."""

    model: str
    machine: str
    duration: str
    lessons: Sequence[Taught]
    ours: Record
    naive: Record
    parent_mb: float
    replay_text: str
    max_forgetting: float
    rolled_back_to: str
    rollback_s: float


def ratio(ours: Record, naive: Record) -> float | None:
    """What ours forgot for each nat that the naive way forgot; None where that forgot nothing."""
    return ours.forgetting / naive.forgetting if naive.forgetting > 0 else None


def gain_share(ours: Record, naive: Record) -> float | None:
    """What ours gained from start to end for each nat of the naive way; None where that gained nothing."""
    return ours.gain / naive.gain if naive.gain > 0 else None


def write_report(path: Path, outcome: Outcome, visitor: Visitor) -> None:
    """Writes the page, whole or not at all."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("continual.demo").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    share = ratio(outcome.ours, outcome.naive)
    page = template.render(
        asdict(outcome)
        | {
            "lessons": outcome.lessons,
            "columns": list(outcome.ours.rows[0]),
            "records": [
                _table("everlearn", outcome.ours),
                _table("naive: fine-tuned on the new text alone", outcome.naive),
            ],
            "ratio": share,
            "ratio_text": "none" if share == 0 else f"{100 * share:.0f} %" if share is not None else "n/a",
            "gain_share": gain_share(outcome.ours, outcome.naive),
            "size_mb": outcome.lessons[-1].size_mb,
            "answers": visitor.answers,
            "failures": visitor.failures,
            "versions": sorted(visitor.versions.items()),
            "swaps": len(outcome.lessons) + 2,
            "first_token_median_s": statistics.median(visitor.first_token_s or [0.0]),
            "first_token_p95_s": _percentile(visitor.first_token_s, 0.95),
        }
    )
    write_file(path, page.encode())


def _table(title: str, record: Record) -> dict[str, Any]:
    names = ("the start", *record.order)
    rows = [
        {"name": name, "cells": [_cell(record, n, domain) for domain in row]}
        for n, (name, row) in enumerate(zip(names, record.rows, strict=True))
    ]
    return {
        "title": title,
        "rows": rows,
        "gain": record.gain,
        "gained": record.gained,
        "forgetting": record.forgetting,
        "forgotten": record.forgotten,
        "worst_loss": record.worst_loss,
    }


def _cell(record: Record, n: int, domain: str) -> dict[str, Any]:
    """Red where a domain is worse than at its best so far, else green by how much better than at the start."""
    loss = record.rows[n][domain]
    learned = record.order.index(domain) + 1 if domain in record.order else 0
    best = min(row[domain] for row in record.rows[: n + 1])
    change = loss - best if loss > best else loss - record.rows[0][domain]
    strength = min(1.0, abs(change) / STRONGEST_NATS)
    hue = HUE_WORSE if change > 0 else HUE_BETTER
    return {
        "text": f"{math.exp(loss):.1f}",
        "own": learned == n and domain in record.order,
        "colour": f"hsl({hue} 75% 45% / {0.45 * strength:.2f})",
    }


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
