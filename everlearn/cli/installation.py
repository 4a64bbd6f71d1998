"""``everlearn config``, ``doctor`` and ``version``: what this installation is, and whether it works."""

from __future__ import annotations

import typer

from everlearn.cli.arguments import Json, open_settings


def config(as_json: Json = False) -> None:
    """Show every setting, and where its value came from."""
    from everlearn.printing import print_json, print_table
    from everlearn.settings import flatten, origins, without_password

    settings = open_settings()
    origin = origins(settings)
    values = {key: without_password(value) for key, value in flatten(settings.model_dump(mode="json"))}
    if as_json:
        print_json({key: {"value": value, "origin": origin[key]} for key, value in values.items()})
    else:
        shown = {key: "" if value is None else value for key, value in values.items()}
        print_table(
            ["SETTING", "VALUE", "ORIGIN"], [(key, value, origin[key]) for key, value in shown.items()]
        )


def doctor(as_json: Json = False) -> None:
    """Check this machine and this installation; exits with 1 where something will not work."""
    from everlearn.doctor import examine
    from everlearn.printing import print_json, print_table

    findings = examine(open_settings())
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        print_table(["", "CHECK", "FOUND"], [(one.verdict, one.check, one.found) for one in findings])
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


def version(as_json: Json = False) -> None:
    """Print everlearn's version."""
    from everlearn import __version__
    from everlearn.printing import print_json

    print_json({"everlearn": __version__}) if as_json else print(__version__)
