"""Arguments that several commands share, and how they reach settings and registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from everlearn.registry.registry import Registry
    from everlearn.settings import Settings


def open_settings() -> Settings:
    """Loads settings, and quiets logs to what a person at a prompt needs, unless a level was asked for."""
    from everlearn.logs import configure_logging
    from everlearn.settings import load_settings, origins

    settings = load_settings()
    asked = origins(settings)["log_level"] != "default"
    configure_logging(settings.log_level if asked else "warning")
    return settings


def open_registry(settings: Settings) -> Registry:
    from everlearn.registry.registry import Registry

    return Registry(settings)


def complete_ref(incomplete: str) -> list[str]:
    """Names for the shell's completion."""
    registry = open_registry(open_settings())
    names = [model.name for model in registry.list()]
    refs = (
        [version.ref for model in registry.list() for version in model.versions] if "@" in incomplete else []
    )
    return [name for name in (*names, *refs) if name.startswith(incomplete)]


HealthSocket = Annotated[
    Path | None,
    typer.Option("--health", metavar="SOCKET", help="Answer `everlearn health SOCKET` on this unix socket."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]", help="name, name@3 or name@champion", autocompletion=complete_ref
    ),
]
Name = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_ref)]
