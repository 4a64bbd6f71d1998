"""Usage per day (UTC), key and model: added by whoever serves, summed for people and for budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Engine, and_, func, insert, select, update

from everlearn.errors import InvalidInput
from everlearn.registry.database import read
from everlearn.registry.tables import ApiKey, UsageRow

By = Literal["key", "model", "day"]
COUNTED = ("requests", "failed", "prompt_tokens", "completion_tokens")


class Spot(NamedTuple):
    """Where a count belongs; ``key_id`` is empty for requests without a key."""

    day: str
    key_id: str
    model: str


@dataclass
class Count:
    """Requests, those of them that failed, and tokens as engines count them."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: Count) -> None:
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Used:
    """A sum. ``what`` is a key's id, a model or a day; ``name`` is the key's."""

    what: str
    name: str | None
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


def add_usage(connection: Connection, counts: Mapping[Spot, Count]) -> None:
    """Adds to the rows that are there, whoever wrote them; inside a transaction of :func:`database.write`."""
    for spot, count in counts.items():
        here = and_(*(getattr(UsageRow, name) == value for name, value in spot._asdict().items()))
        more = {name: getattr(UsageRow, name) + getattr(count, name) for name in COUNTED}
        if not connection.execute(update(UsageRow).where(here).values(more)).rowcount:
            connection.execute(insert(UsageRow).values(**spot._asdict(), **vars(count)))


def budgeted_tokens(connection: Connection, month: str) -> dict[str, int]:
    """The tokens of a month (``2026-11``) of every key that has a budget."""
    tokens = func.sum(UsageRow.prompt_tokens + UsageRow.completion_tokens)
    query = (
        select(UsageRow.key_id, tokens)
        .join(ApiKey, and_(ApiKey.id == UsageRow.key_id, ApiKey.tokens_per_month.is_not(None)))
        .where(UsageRow.day.between(*month_days(month)))
        .group_by(UsageRow.key_id)
    )
    return {key_id: int(sum_) for key_id, sum_ in connection.execute(query)}


def sum_usage(db: Engine, since: str, until: str, by: By = "key") -> Sequence[Used]:
    """Sums over the days from ``since`` to ``until``, both included, the most tokens first; days in their order."""
    what: Any = {"key": UsageRow.key_id, "model": UsageRow.model, "day": UsageRow.day}[by]
    sums = [func.sum(getattr(UsageRow, name)).label(name) for name in COUNTED]
    query = select(what.label("what"), *sums).where(UsageRow.day.between(since, until)).group_by(what)
    with read(db) as connection:
        rows = connection.execute(query).mappings().all()
        names = {id: name for id, name in connection.execute(select(ApiKey.id, ApiKey.name))}
    found = [
        Used(
            row["what"],
            names.get(row["what"]) if by == "key" else None,
            **{name: int(row[name]) for name in COUNTED},
        )
        for row in rows
    ]
    if by == "day":
        return sorted(found, key=lambda used: used.what)
    return sorted(found, key=lambda used: (-used.prompt_tokens - used.completion_tokens, used.what))


def day_of(seconds: float) -> str:
    """The day in UTC of a time since 1970, as ``2026-11-25``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def month_days(month: str) -> tuple[str, str]:
    """The first and the last day of ``2026-11``. Raises InvalidInput."""
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(f"{month[:40]!r} is not a month such as 2026-11", param="month") from None
    last = month_end(first) - timedelta(days=1)
    return first.date().isoformat(), last.date().isoformat()


def month_end(moment: datetime) -> datetime:
    """When the month of a moment is over."""
    later = moment.replace(day=1) + timedelta(days=32)
    return later.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
