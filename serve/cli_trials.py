"""``everlearn canary`` and ``everlearn shadow``: try a version on real requests before it is promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everlearn.cli.arguments import Json, Ref, open_registry, open_settings

if TYPE_CHECKING:
    from everlearn.registry.records import Trial

Percent = Annotated[
    float, typer.Option(min=0, max=100, help="Share of the model's requests, above 0.", show_default=True)
]
Stop = Annotated[bool, typer.Option("--stop", help="End the trial of this model.")]


def canary(ref: Ref, percent: Percent = 10, stop: Stop = False, as_json: Json = False) -> None:
    """Let another version answer a share of a model's requests."""
    _try_out(ref, "canary", percent, stop, as_json)


def shadow(ref: Ref, percent: Percent = 10, stop: Stop = False, as_json: Json = False) -> None:
    """Let another version hear a share of a model's requests; nobody sees its answers, only its figures."""
    _try_out(ref, "shadow", percent, stop, as_json)


def _try_out(ref: str, role: Trial, percent: float, stop: bool, as_json: bool) -> None:
    from everlearn.bundles.reference import parse_reference
    from everlearn.printing import print_json

    registry = open_registry(open_settings())
    if stop:
        version = registry.end_trial(parse_reference(ref).model, role)
    else:
        version = registry.try_out(ref, role, percent / 100)
    if as_json:
        print_json({"ref": version.ref, "role": role, "percent": 0 if stop else percent})
    elif stop:
        print(f"{version.ref} is the {role} of {version.model} no more")
    else:
        verb = "answers" if role == "canary" else "hears"
        print(f"{version.ref} {verb} {percent:g}% of the requests for {version.model}, once it is warm")
