"""``everlearn config``, ``doctor`` and ``version``: what this installation is, and whether it works."""

from __future__ import annotations

from typing import Annotated

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


def health(
    where: Annotated[
        str, typer.Argument(metavar="SOCKET|URL", help="As given to --health, or a gateway's address.")
    ],
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=600, help="Seconds to wait.")] = 5,
) -> None:
    """Ask a running server or worker whether it is well; exits with 1 where it is not."""
    import httpx

    from everlearn.errors import Unavailable

    remote = where.startswith(("http://", "https://"))
    base = where.rstrip("/") if remote else "http://socket"
    try:
        with httpx.Client(transport=None if remote else httpx.HTTPTransport(uds=where)) as client:
            answer = client.get(f"{base}/health", timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"{where} does not answer: {str(error) or type(error).__name__}") from None
    if answer.status_code != 200:
        raise Unavailable(f"{where} answers {answer.status_code}: {answer.text[:300]}")
    print(answer.text)


def version(as_json: Json = False) -> None:
    """Print everlearn's version."""
    from everlearn import __version__
    from everlearn.printing import print_json

    print_json({"everlearn": __version__}) if as_json else print(__version__)
