"""``everlearn deploy runner``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Platform = Literal["linux-x64", "linux-arm64"]
Python = Literal["3.11", "3.12", "3.13"]


def runner(
    platform: Annotated[Platform, typer.Option(help="Machine that it is to run on.")],
    out: Annotated[Path, typer.Option(help="File to make.")],
    python: Annotated[Python, typer.Option(help="Python 3 that is installed there.")] = "3.11",
) -> None:
    """Make the file that serves edge folders on Linux."""
    from deploy.edge.native.pack import pack
    from everlearn.printing import size
    from everlearn.progress import shown

    with shown() as progress:
        size_bytes = pack(platform, python, out, progress)
    print(f"{out}: {size(size_bytes)}, for {platform} with Python {python}")
