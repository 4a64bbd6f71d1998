"""Report of a comparison: a table at the terminal, or one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from compress.measure.compare import PROMPTS, Compared
from everlearn.bundles.durable import write_file
from everlearn.printing import print_table, size

WIDTH, HEIGHT, MARGIN = 640, 320, 46


def figures_of(one: Compared) -> dict[str, Any]:
    """Everything that was measured of a version, for a machine to read."""
    return {
        "ref": one.ref,
        "made": one.made,
        "size_bytes": one.size_bytes,
        "texts": {
            name: {**asdict(found), "perplexity": found.perplexity, "ratio": found.ratio}
            for name, found in one.quality.items()
        },
        "accuracy": one.accuracy,
        "flips": one.flips,
        "speed": dict(one.speed),
    }


def print_compared(found: Sequence[Compared]) -> None:
    """One line per version; below, where they were timed, one line per version with its speed and first answer."""
    texts = [f"-PPL {name}" for name in found[0].quality]
    header = ["VERSION", "MADE", "-SIZE", *texts, "-RATIO", "-KL", "-SAME TOP", "-WORDS", "-FLIPS"]
    print_table(header, [[one.ref, one.made, *quality_cells(one)] for one in found])
    print(f"\nPareto front of size and divergence: {', '.join(one.ref for one in undominated(found))}")
    if all(one.speed for one in found):
        print()
        header = ["VERSION", "-TOKENS/S", "-OF 8", "-PREFILL", "-MEMORY", "ENGINE", f"ANSWER: {PROMPTS[0]}"]
        rows = [
            [one.ref, *speed_cells(one), one.speed["engine"], one.speed["answers"][0].strip()]
            for one in found
        ]
        print_table(header, rows)


def quality_cells(one: Compared) -> list[str]:
    """Size and quality as text."""
    perplexities = [f"{each.perplexity:.2f}" for each in one.quality.values()]
    distance = [f"{ratio(one):.3f}", f"{one.mean('divergence'):.4f}", f"{one.mean('agreement'):.1%}"]
    return [size(one.size_bytes), *perplexities, *distance, f"{one.accuracy:.1%}", f"{one.flips:.1%}"]


def speed_cells(one: Compared) -> list[str]:
    """Speed and memory as text; nothing where they were not measured."""
    if not one.speed:
        return []
    return [*(f"{one.speed[key]:.0f}" for key in SPEEDS), size(one.speed["peak_memory_bytes"])]


SPEEDS = ("decode_tokens_per_s", "decode_8_tokens_per_s", "prefill_tokens_per_s")


def ratio(one: Compared) -> float:
    """Perplexity over the first's: the geometric mean over the texts."""
    return math.exp(one.mean("nll") - one.mean("reference_nll"))


def undominated(found: Sequence[Compared]) -> list[Compared]:
    """Those that no other is both smaller and nearer than, from the smallest."""
    best: list[Compared] = []
    for one in sorted(found, key=lambda each: (each.size_bytes, each.mean("divergence"))):
        if not best or one.mean("divergence") < best[-1].mean("divergence"):
            best.append(one)
    return best


def write_report(path: Path, found: Sequence[Compared]) -> None:
    """The page: plot of size and divergence, table, answers side by side."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        resources.files("compress.measure").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        found=found,
        rows=[[one.ref, one.made, *quality_cells(one)] for one in found],
        speeds=[[one.ref, one.speed["engine"], *speed_cells(one)] for one in found if one.speed],
        texts=list(found[0].quality),
        plot=plot(found),
        prompts=PROMPTS,
        words=found[0].words,
        tokens=sum(one.tokens for one in found[0].quality.values()),
    )
    write_file(path, page.encode())


def plot(found: Sequence[Compared]) -> dict[str, Any]:
    """Places in an SVG of WIDTH x HEIGHT: bytes to the right, nats of divergence upwards, both from 0."""
    largest = max(one.size_bytes for one in found)
    farthest = max(one.mean("divergence") for one in found) or 1.0

    def place(one: Compared) -> dict[str, Any]:
        return {
            "ref": one.ref,
            "x": round(MARGIN + (WIDTH - 3 * MARGIN) * one.size_bytes / largest, 1),
            "y": round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * one.mean("divergence") / farthest, 1),
        }

    front = undominated(found)
    return {
        "points": [place(one) | {"front": one in front} for one in found],
        "line": " ".join(f"{at['x']},{at['y']}" for at in map(place, front)),
        "largest": size(largest),
        "farthest": f"{farthest:.3f}",
        "width": WIDTH,
        "height": HEIGHT,
        "margin": MARGIN,
    }
