"""``everlearn train``: a recipe in, the next version of a model out."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from everlearn.cli.arguments import Json, open_registry, open_settings
from train.objectives.table import help_line

commands = typer.Typer()


@commands.command(epilog=help_line())
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value, as in optimizer.lr=0.0003."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; the same folder goes on with it. Default: one per recipe and its data."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model. Interrupted or killed, the same command goes on from the last checkpoint."""
    from everlearn.cli.models import print_added
    from everlearn.progress import shown
    from train.recipe import read_recipe
    from train.runs.live_view import live_view
    from train.runs.registered import train_registered

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: save, then end
    settings = open_settings()
    version = train_registered(
        read_recipe(recipe, overrides or []),
        open_registry(settings),
        settings.home / "runs",
        run_dir,
        hashing_view=shown,
        training_view=live_view,
        say=lambda line: print(line, file=sys.stderr),
    )
    print_added(version, as_json)


data = typer.Typer(help="Look at prepared data.", no_args_is_help=True)
commands.add_typer(data, name="data")


@data.command("show")
def show_data(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Prepared data, such as a run's data/.")],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("data.html"),
) -> None:
    """Write one HTML page about prepared data: lengths, languages, sources, what was left out and examples of it."""
    from everlearn.bundles.durable import write_file
    from train.data.page.card_page import card_page

    write_file(out, card_page(folder).encode())
    print(out)
