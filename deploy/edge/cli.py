"""``everlearn deploy edge`` and ``everlearn deploy check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploy.edge.targets import FORMS, TARGETS, FormName
from everlearn.cli.arguments import Json, Ref, open_settings

if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[tuple(TARGETS)]

Arm64 = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder with usr/bin/python3.11 and site/ (numpy, onnxruntime) for arm64, to run under qemu.",
    ),
]
FORM_HELP = "How weights are stored; the first is the default. Decoders: {}. All others: {}.".format(
    *(
        "; ".join(f"{target}: {', '.join(of.forms[task])}" for target, of in TARGETS.items())
        for task in ("generate", "embed")
    )
)


def edge(
    ref: Ref,
    target: Annotated[Target, typer.Option(help="Kind of device.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    budget: Annotated[
        str | None,
        typer.Option(
            help="Limits, such as download<=100MB,memory<=400MB; a folder beyond them is not built."
        ),
    ] = None,
    form: Annotated[FormName | None, typer.Option(help=FORM_HELP)] = None,
    arm64: Arm64 = None,
    as_json: Json = False,
) -> None:
    """Write a folder that one kind of device runs, after checking that the model runs there."""
    from deploy.edge.budget import Budget, parse_budget
    from deploy.edge.build import build
    from everlearn.printing import print_json, size
    from everlearn.progress import shown

    limits = parse_budget(budget) if budget else Budget()
    with shown() as progress:
        made = build(open_settings(), ref, target, out, progress, form=form, budget=limits, arm64=arm64)
    if as_json:
        print_json(made.model_dump(mode="json", exclude_none=True))
        return
    print(f"{out}: {made.model}@{made.version} for {target} as {made.form}, {FORMS[made.form].description}")
    print(f"download {size(made.download_bytes)}, memory {size(made.memory_bytes)} ({made.memory_is})")
    if made.measured:
        print(f"{made.measured.tokens_per_s:g} tokens/s on {made.measured.on}")


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `deploy edge` made.")],
    arm64: Arm64 = None,
    as_json: Json = False,
) -> None:
    """Check a folder: its bytes, its operators, and what its runtime computes."""
    from dataclasses import asdict

    from deploy.edge.check.check import check as check_folder
    from everlearn.printing import print_json, print_table, size
    from everlearn.progress import shown

    with shown() as progress:
        found = check_folder(open_settings(), directory, arm64, progress)
    made = found.manifest
    if as_json:
        sessions = [asdict(one) for one in found.sessions]
        print_json({"folder": str(directory), "sessions": sessions, "skipped": found.skipped})
        return
    print(
        f"{made.model}@{made.version} for {made.target} as {made.form}: bytes, operators and probes are right"
    )
    rows = [
        (
            one.on,
            f"{one.difference:.5f} of {made.bound:g}",
            f"{one.tokens_per_s:.1f}" if one.is_device else "not this device",
            size(one.peak_bytes) if one.is_device else "not this device",
        )
        for one in found.sessions
    ]
    print_table(["ON", "-DIFFERENCE", "-TOKENS/S", "-PEAK MEMORY"], rows)
    for why in found.skipped:
        print(f"not run: {why}")
