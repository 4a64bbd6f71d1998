"""``everlearn compress`` and ``everlearn distill``: smaller models, each with what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everlearn.cli_arguments import Json, Ref, open_registry, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from everlearn.records import Version

SHOWN = (
    ("perplexity", "perplexity"),
    ("parent_perplexity", "the parent's"),
    ("perplexity_ratio", "ratio"),
    ("divergence", "KL to the parent, nats a token"),
    ("agreement", "same most likely token"),
    ("cosine_mean", "cosine with the parent's, mean"),
    ("cosine_min", "cosine with the parent's, least"),
    ("seconds", "seconds"),
)


def compress(
    ref: Ref,
    to: Annotated[
        Literal["int4-onnx", "int8-onnx", "fp32-onnx", "w8a8"] | None,
        typer.Option(help="What to make of it; int4-onnx unless said. w8a8 is for vLLM."),
    ] = None,
    weights: Annotated[
        Literal["rtn", "gptq"] | None, typer.Option(help="int4-onnx: how weights are rounded.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A text file, or a token store, for gptq and w8a8 to look at.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A YAML file with several targets and their one calibration set.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make smaller versions of a model, measured against the original."""
    from compress.export import export
    from compress.recipe import CompressRecipe, read_plan
    from everlearn.progress import shown

    if recipe is None:
        said: dict[str, Any] = {"to": to or "int4-onnx"}
        if weights:
            said["weights"] = weights
        if calibration:
            said["calibration"] = {"store" if calibration.is_dir() else "text": calibration.absolute()}
        wanted = [CompressRecipe(**said)]
    elif to or weights or calibration:
        raise InvalidInput("--recipe says all of it: leave --to, --weights and --calibration out")
    else:
        wanted = read_plan(recipe).recipes()
    settings = open_settings()
    with shown() as progress:
        versions = [export(settings, ref, one, progress) for one in wanted]
    print_prices(versions, as_json)


def print_prices(versions: list[Version], as_json: bool) -> None:
    """Each version's size, and what it lost."""
    from everlearn.cli_models import describe
    from everlearn.printing import print_json, size

    if as_json:
        registry = open_registry(open_settings())
        found = [describe(version, registry.model(version.model)) for version in versions]
        print_json(found[0] if len(found) == 1 else found)
        return
    for version in versions:
        print(f"{version.ref}: {version.format}, {size(version.manifest.size_bytes)}")
        for key, label in SHOWN:
            if key in version.manifest.metrics:
                print(f"  {label:<32} {version.manifest.metrics[key]}")


def distill(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="Which teacher, which student, on what text.")
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same folder goes on with it. Default: one per recipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a smaller student by a model's predictions; it becomes a model of its own."""
    import hashlib

    from compress.teach import distill as teach
    from compress.teach import read_distill_recipe
    from everlearn.cli_models import print_added
    from everlearn.progress import shown

    wanted = read_distill_recipe(recipe)
    settings = open_settings()
    key = hashlib.sha256(wanted.model_dump_json().encode()).hexdigest()[:12]
    with shown() as progress:
        version = teach(
            settings, wanted, run_dir or settings.home / "runs" / f"{wanted.name}-{key}", progress
        )
    print_added(version, as_json)
