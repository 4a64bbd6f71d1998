"""``everlearn audit``: who administered what."""

from __future__ import annotations

from typing import Annotated

import typer

from everlearn.cli.arguments import Json, open_settings


def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List administrative acts, the newest first: keys, aliases, deletions, cancellations, and who did them."""
    from everlearn.printing import moment, print_json, print_table
    from everlearn.registry.audit import list_acts
    from everlearn.registry.database import open_database

    acts = list_acts(open_database(open_settings()), limit)
    if as_json:
        print_json([vars(act) for act in acts])
        return
    rows = [
        (moment(act.at), act.actor, act.act, act.subject,
         " ".join(f"{name}={value}" for name, value in act.detail.items() if value is not None))
        for act in acts
    ]  # fmt: skip
    print_table(["AT", "ACTOR", "ACT", "SUBJECT", "DETAIL"], rows)
