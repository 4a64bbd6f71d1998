"""``everlearn usage``: what keys and models used."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everlearn.cli.arguments import Json, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from everlearn.registry.usage import Used


def usage(
    month: Annotated[str | None, typer.Option(help="As 2026-11. Default: this month, UTC.")] = None,
    since: Annotated[str | None, typer.Option(help="First day, as 2026-11-03.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day. Default: today, UTC.")] = None,
    by: Annotated[Literal["key", "model", "day"], typer.Option(help="What to sum by.")] = "key",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Sum up requests and tokens of keys, models or days; batches are in it."""
    from everlearn.printing import print_json, print_table
    from everlearn.registry.database import open_database
    from everlearn.registry.usage import sum_usage

    found = sum_usage(open_database(open_settings()), *_days(month, since, until), by)
    if as_json:
        print_json([_describe(used, by) for used in found])
    elif as_csv:
        _print_csv(found, by)
    else:
        columns = [by.upper(), *(["NAME"] if by == "key" else [])]
        counts = ["-REQUESTS", "-FAILED", "-PROMPT TOKENS", "-COMPLETION TOKENS"]
        rows = [["" if cell is None else cell for cell in _describe(used, by).values()] for used in found]
        print_table([*columns, *counts], rows)


def _days(month: str | None, since: str | None, until: str | None) -> tuple[str, str]:
    """Raises InvalidInput."""
    from everlearn.registry.usage import day_of, month_days

    today = day_of(time.time())
    if since is None and until is None:
        return month_days(month or today[:7])
    if month is not None or since is None:
        raise InvalidInput("give --month, or --since and perhaps --until", param="month")
    return _day(since, "since"), _day(until or today, "until")


def _day(text: str, param: str) -> str:
    from datetime import date

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is not a day such as 2026-11-03", param=param) from None


def _describe(used: Used, by: str) -> dict[str, Any]:
    told = dict(vars(used))
    what, name = told.pop("what"), told.pop("name")
    return {by: what, **({"name": name if what else "(without a key)"} if by == "key" else {}), **told}


def _print_csv(found: Any, by: str) -> None:
    import csv

    columns = [by, *(["name"] if by == "key" else [])]
    columns += ["requests", "failed", "prompt_tokens", "completion_tokens"]
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_describe(used, by) for used in found)
