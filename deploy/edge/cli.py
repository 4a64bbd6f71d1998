"""``everlearn deploy edge`` and ``everlearn deploy check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploy.edge.targets import TARGETS
from everlearn.cli.arguments import Json, Ref, open_settings

if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[tuple(TARGETS)]


def edge(
    ref: Ref,
    target: Annotated[Target, typer.Option(help="Kind of device.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    as_json: Json = False,
) -> None:
    """Make the folder of a model for a kind of device."""
    from deploy.edge.build import build
    from everlearn.printing import print_json, size
    from everlearn.progress import shown

    with shown() as progress:
        manifest = build(open_settings(), ref, target, out, progress)
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude_none=True))
        return
    print(f"{out}: {manifest.model}@{manifest.version} as {manifest.form}, {size(manifest.download_bytes)}")
