"""``everlearn deploy convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploy.runtimes.table import CONTEXT, RUNTIMES
from everlearn.cli.arguments import Json, Ref, open_settings

if TYPE_CHECKING:
    Runtime = str
else:
    Runtime = Literal[tuple(RUNTIMES)]

TO = "; ".join(f"{name}: {one.title}, for {one.used_on}" for name, one in RUNTIMES.items())


def convert(
    ref: Ref,
    to: Annotated[Runtime, typer.Option(help=TO)],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    context: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=32768,
            help=f"Tokens of a text at most, for litert and executorch; {CONTEXT} unless said.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for another runtime, run it there, and compare it with torch.

    In float32, whatever form the weights have.
    """
    from deploy.runtimes.convert import convert as make
    from everlearn.printing import print_json, size
    from everlearn.progress import shown

    with shown() as progress:
        made = make(open_settings(), ref, to, out, context, progress)
    if as_json:
        print_json(made)
        return
    held = size(sum(file["bytes"] for file in made["files"]))
    print(
        f"{out}: {made['model']}@{made['version']} for {RUNTIMES[to].title}, {held}, made in {made['seconds']:.0f} s"
    )
    print(
        f"off from torch by at most {made['largest_difference']:g}; {made['tokens_per_s']:.0f} tokens/s of one text"
    )
    if made["task"] == "generate":
        print(f"chat: {RUNTIMES[to].chat}")
