"""``everlearn compress`` and ``everlearn distill``: smaller models, each with what it cost."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compress.quantize.methods import METHODS, targets_with_a_choice
from compress.targets.table import DEFAULT_GGUF_TYPE, DEFAULT_TARGET, FOR_VLLM, GGUF_TYPES, TARGETS
from everlearn.cli.arguments import Json, Ref, open_registry, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from compress.recipe import CompressPlan
    from everlearn.registry.records import Version

    To = Weights = GgufType = str
else:  # what --help lists and the command line accepts are the names in the tables
    To, Weights, GgufType = (Literal[tuple(table)] for table in (TARGETS, METHODS, GGUF_TYPES))

commands = typer.Typer()
UNCALIBRATED = " and ".join(name for name, method in METHODS.items() if not method.calibrated)

SHOWN = (
    ("perplexity", "perplexity"),
    ("parent_perplexity", "the parent's"),
    ("perplexity_ratio", "ratio"),
    ("divergence", "KL to the parent, nats per token"),
    ("agreement", "same most likely token"),
    ("prediction_divergence", "KL to the parent, nats per prediction"),
    ("prediction_agreement", "same most likely prediction"),
    ("logits_difference", "largest difference of a logit"),
    ("cosine_mean", "cosine with the parent's, mean"),
    ("cosine_min", "cosine with the parent's, least"),
    ("held_perplexity_before", "on its held-out text, before"),
    ("held_perplexity", "on its held-out text, after"),
    ("held_cosine_before", "cosine on its held-out text, before"),
    ("held_cosine", "cosine on its held-out text, after"),
    ("image_to_text_recall_at_1_before", "images that find their text, before"),
    ("image_to_text_recall_at_1", "images that find their text, after"),
    ("text_to_image_recall_at_1_before", "texts that find their image, before"),
    ("text_to_image_recall_at_1", "texts that find their image, after"),
    ("seconds", "seconds"),
)


def weights_help() -> str:
    """Of ``--weights``: where there is a choice, and which methods are for some of that alone."""
    choice = targets_with_a_choice()
    narrower = {name: one.targets for name, one in METHODS.items() if not set(choice) <= set(one.targets)}
    said = [f"{name} is for {' and '.join(targets)}" for name, targets in narrower.items()]
    return "; ".join([f"How {' and '.join(choice)} are rounded", *said]) + "."


@commands.command()
def compress(
    ref: Ref,
    to: Annotated[
        To | None,
        typer.Option(
            help=f"What to make of it; {DEFAULT_TARGET} unless said. {' and '.join(FOR_VLLM)} are for vLLM."
        ),
    ] = None,
    weights: Annotated[Weights | None, typer.Option(help=weights_help())] = None,
    kv_cache: Annotated[
        Literal["float32", "int8"] | None,
        typer.Option(help="How ONNX decoders keep past tokens; int8 takes a quarter of the memory."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=f"A text file or a token store that every method but {UNCALIBRATED} reads."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A YAML file: prune, heal, and several targets at once.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help='"size<=60MB" or "speed>=6x": find and make the best version that fits.'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make smaller versions of a model, measured against the original."""
    from compress.export import export
    from compress.plan import follow
    from compress.recipe import CompressRecipe
    from everlearn.progress import shown
    from train.recipe import validate_recipe

    settings = open_settings()
    if recipe is None and target is None:
        said: dict[str, Any] = {"to": to or DEFAULT_TARGET}
        if weights:
            said["weights"] = weights
        if kv_cache:
            said["kv_cache"] = kv_cache
        if calibration:
            said["calibration"] = {"store" if calibration.is_dir() else "text": calibration.absolute()}
        with shown() as progress:
            versions = [export(settings, ref, validate_recipe(CompressRecipe, said), progress)]
    elif to or weights or kv_cache or calibration:
        raise InvalidInput(
            "--recipe or --target says all of it: leave --to, --weights, --kv-cache and --calibration out"
        )
    else:
        plan = with_target(recipe, target)
        with shown() as progress:
            versions = list(follow(settings, ref, plan, progress))
    print_versions(versions, as_json)


def with_target(recipe: Path | None, target: str | None) -> CompressPlan:
    """The recipe's plan, with a target from the command line. Raises ConfigError."""
    from compress.recipe import CompressPlan, read_plan
    from train.recipe import validate_recipe

    if recipe is None:
        return validate_recipe(CompressPlan, {"target": target})
    return read_plan(recipe, target)


def print_versions(versions: list[Version], as_json: bool) -> None:
    """Each version's size, what it was made of and what it lost against that."""
    from everlearn.cli.models import describe
    from everlearn.printing import print_json, size

    registry = open_registry(open_settings())
    if as_json:
        found = [describe(version, registry.model(version.model)) for version in versions]
        print_json(found[0] if len(found) == 1 else found)
        return
    origins = [next(iter(registry.lineage(one.ref)[1:]), None) for one in versions]
    for version, origin in zip(versions, origins, strict=True):
        of = f", of {origin.ref}" if origin else ""
        print(f"{version.ref}: {version.format}, {size(version.manifest.size_bytes)}{of}")
        for key, label in SHOWN:
            if key in version.manifest.metrics:
                print(f"  {label:<37} {version.manifest.metrics[key]}")
    quantized = [one.ref for one in versions if "export" in one.manifest.recipe]
    if origins[0] and quantized and len(versions) > 1:
        print(f"Beside the original: everlearn compare {origins[0].ref} {' '.join(quantized)}")


@commands.command()
def distill(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="Which teacher, which student, on what text.")
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; the same folder goes on with it. Default: one per recipe and its data."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a smaller student by a model's predictions; it becomes a model of its own."""
    from compress.distill import run
    from compress.distill.recipe import read_distill_recipe
    from everlearn.cli.models import print_added
    from everlearn.progress import shown

    wanted = read_distill_recipe(recipe)
    settings = open_settings()
    with shown() as progress:
        version = run.distill(settings, wanted, run_dir, progress)
    print_added(version, as_json)


@commands.command()
def answers(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.jsonl", help='A line each: {"prompt": …} or {"messages": […]}.')
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="Conversations, as everlearn train takes them.")
    ],
    url: Annotated[str, typer.Option(help="An OpenAI server's, as https://host/v1.")],
    model: Annotated[str, typer.Option(help="The model to ask there.")],
    key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    samples: Annotated[int, typer.Option(help="Answers per prompt.", min=1, max=64)] = 1,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_tokens: Annotated[
        int, typer.Option(help="At most, per answer; a longer one is left out.", min=1)
    ] = 1024,
    at_once: Annotated[int, typer.Option(help="Requests in flight at once.", min=1, max=256)] = 8,
    as_json: Json = False,
) -> None:
    """Ask a served model, and keep its answers as text for another model to learn."""
    from everlearn.printing import print_json
    from everlearn.progress import shown
    from train.data.augmenting.answers import Asking, answer_prompts

    asking = Asking(url, model, os.environ.get(key_env), samples, temperature, max_tokens, at_once)
    with shown() as progress:
        found = answer_prompts(prompts, out, asking, progress)
    if as_json:
        print_json(asdict(found))
        return
    print(f"{out}: {found.answers} answers, {found.asked} asked for now")
    if found.cut:
        print(f"  left out: {found.cut} longer than {max_tokens} tokens; --max-tokens allows more")
    if found.empty:
        print(f"  left out: {found.empty} empty ones")
    if found.refused:
        print(f"  refused: {found.refused}, the first one with {found.why_refused}")


@commands.command()
def compare(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[@VERSION]…", help="The first is what the others are measured against."),
    ],
    text: Annotated[
        list[Path] | None, typer.Option(help="Measure on this text, too; may be repeated.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each text, at most.", min=512)] = 2048,
    speed: Annotated[
        bool, typer.Option(help="Measure speed and memory, and ask each a few questions.")
    ] = True,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure versions against the first: size, quality on texts, speed, answers."""
    from compress.measure.compare import compare as measure
    from compress.measure.report import figures_of, print_compared, write_report
    from everlearn.printing import print_json
    from everlearn.progress import shown

    settings = open_settings()
    with shown() as progress:
        found = measure(settings, refs, text or (), tokens=tokens, speed=speed, progress=progress)
    if report:
        write_report(report, found)
    if as_json:
        print_json([figures_of(one) for one in found])
    else:
        print_compared(found)


@commands.command("gguf")
def export_gguf(
    ref: Ref,
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="What to write.")],
    kind: Annotated[GgufType, typer.Option("--type", help="How matrices are stored.")] = DEFAULT_GGUF_TYPE,
    as_json: Json = False,
) -> None:
    """Write a model as a GGUF file for llama.cpp, read it back, and say what it cost."""
    from compress.export_gguf import export_gguf as write
    from everlearn.printing import print_json, size
    from everlearn.privacy import share
    from everlearn.progress import shown

    with shown() as progress:
        metrics = write(open_settings(), ref, file, kind, progress)
    share(file)
    if as_json:
        print_json(metrics)
        return
    print(f"{file}: {size(metrics['size_bytes'])}")
    for key, label in SHOWN:
        if key in metrics:
            print(f"  {label:<37} {metrics[key]}")
