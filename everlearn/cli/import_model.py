"""``everlearn import``: import a model as a new version."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from everlearn.cli.arguments import Json, open_settings
from everlearn.cli.models import print_added


def import_(
    source: Annotated[
        str, typer.Argument(help="A catalogue name, a folder, a .gguf file, or hf:ORG/NAME[@REVISION].")
    ],
    name: Annotated[str | None, typer.Option(help="What to call the model here.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a model in as a new version."""
    from everlearn.importing.sources import import_model
    from everlearn.progress import shown

    with shown() as progress:
        version = import_model(open_settings(), source, name=name, progress=progress)
    print_added(version, as_json)
    if name is None and version.version > 1:
        print(
            f"note: {version.model} was there already, and this is its version {version.version}; "
            "--name gives another name",
            file=sys.stderr,
        )
