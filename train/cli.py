"""``everlearn train``: a recipe in, the next version of a model out."""

from __future__ import annotations

import os
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


data = typer.Typer(help="Look at prepared data, or make more of it.", no_args_is_help=True)
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


@data.command("paraphrase")
def paraphrase_data(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Texts or labelled examples, such as a run's data/train.jsonl."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where to write the paraphrases.")],
    url: Annotated[str, typer.Option(help="An OpenAI server's, as https://host/v1.")],
    model: Annotated[str, typer.Option(help="The model to ask there.")],
    key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    kind: Annotated[str, typer.Option(help="Of the examples, as data.kind or the objective says.")] = "auto",
    copies: Annotated[int, typer.Option(help="Paraphrases of each example.", min=1, max=64)] = 1,
    through: Annotated[
        str | None, typer.Option(help="Translate into this language and back, as in Spanish.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of the examples, to translate back into.")] = "English",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.8,
    max_tokens: Annotated[
        int, typer.Option(help="At most, per answer; a longer one is left out.", min=1)
    ] = 1024,
    at_once: Annotated[int, typer.Option(help="Requests in flight at once.", min=1, max=256)] = 8,
) -> None:
    """Ask a served model for each text in other words, to have more to learn from. The same command goes on."""
    from typing import cast

    from everlearn.errors import ConfigError
    from everlearn.progress import shown
    from train.data.augmenting.answers import Asking
    from train.data.augmenting.paraphrase import paraphrase
    from train.data.reading.read import KINDS, Kind

    if kind not in KINDS:
        raise ConfigError(f"--kind {kind}: one of {', '.join(KINDS)} would do", param="kind")
    if not (file.name == "train.jsonl" and (file.parent / "card.json").exists()):
        print(
            "note: what is held out of these texts would be known by its paraphrases. Prepare first, paraphrase the "
            "run's data/train.jsonl, and name data/held.jsonl as data.held",
            file=sys.stderr,
        )
    asking = Asking(url, model, os.environ.get(key_env), copies, temperature, max_tokens, at_once)
    with shown() as progress:
        made = paraphrase(
            file, out, asking, kind=cast(Kind, kind), through=through, language=language, progress=progress
        )
    print(f"{out}: {made.told()}")
