"""Fine-tuning beside the Hugging Face Trainer and a bare torch loop: `python -m benchmarks.train.fine_tuning`.

The same rows in the same order through the same model, optimizer and precision; the losses must agree, or nothing is
reported. Every round starts each of the three anew in a process of its own, in turn, so that a busy machine is busy
for all; the best round of each counts. Loading and the first steps are not timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from benchmarks.machine import Neighbours
from benchmarks.serve.onnx import BUSY_SHARE, CACHE, environment, say
from everlearn.errors import NotFound
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.data.examples import Text
from train.data.packing import Packer
from train.data.store import open_store, write_store
from train.data.tokenize import Tokens
from train.evaluate.held_out_text import held_out_text

MODEL = "smollm2"
LOOPS = ("bare torch loop", "everlearn", "Hugging Face Trainer")
WARM_UP_STEPS = 2
GOAL = 0.95
LOSS_TOLERANCE = 0.02
"""Relative: kernels round differently, and bfloat16 rounds much."""


class Figures(TypedDict):
    """What one loop's process answers. ``losses``: nats per target of each step."""

    tokens_per_s: float
    peak_memory_bytes: int
    losses: list[float]


class Report(TypedDict):
    """What `--json` writes."""

    work: dict[str, Any]
    rounds: int
    others_cpu_share: float
    best: dict[str, Figures]
    ratio_to_bare_loop: float
    goal: float
    met: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"timed, after {WARM_UP_STEPS} that are not")
    parser.add_argument("--rows", type=int, default=4, help="sequences in a step")
    parser.add_argument("--sequence-tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--model-dir", type=Path, help=f"a Hugging Face folder (default: {MODEL})")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    work = {
        "model_dir": str(arguments.model_dir or model_directory()),
        "threads": arguments.threads,
        "steps": arguments.steps + WARM_UP_STEPS,
        "warm_up_steps": WARM_UP_STEPS,
        "rows": arguments.rows,
        "sequence_tokens": arguments.sequence_tokens,
        "dtype": arguments.dtype,
    }
    report = measure(work, arguments.rounds)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(work: dict[str, Any], rounds: int) -> Report:
    best: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder, Neighbours() as others:
        write_rows(work, Path(folder))
        for round_ in range(rounds):
            for loop in LOOPS:
                say(f"round {round_ + 1} of {rounds}: {loop}")
                figures = run(loop, work, Path(folder))
                say(
                    f"    {figures['tokens_per_s']:.1f} tokens/s, {figures['peak_memory_bytes'] / 1e6:.0f} MB"
                )
                best[loop] = better(best.get(loop), figures)
    check(best)
    ratio = best["everlearn"]["tokens_per_s"] / best["bare torch loop"]["tokens_per_s"]
    return Report(
        work=work, rounds=rounds, others_cpu_share=others.share, best=best,
        ratio_to_bare_loop=ratio, goal=GOAL, met=ratio >= GOAL,
    )  # fmt: skip


def write_rows(work: dict[str, Any], folder: Path) -> None:
    """A store of whole rows for everlearn, and the very batches it draws from it for the others."""
    tokens, size = Tokens(Path(work["model_dir"])), work["sequence_tokens"]
    pieces = tokens.encode(Text(held_out_text().text), size)
    whole = [piece for piece in pieces if len(piece) == size]
    if len(whole) < work["rows"]:
        raise SystemExit(
            f"the text has {len(whole)} rows of {size} tokens: ask for fewer --rows or shorter ones"
        )
    write_store(folder / "store", whole, tokenizer_sha256=tokens.sha256, vocab_size=tokens.vocab_size)
    packer = Packer(open_store(folder / "store"), size, seed=0)
    batches = [packer.batch(step, work["rows"]) for step in range(work["steps"])]
    np.savez(
        folder / "batches.npz",
        input_ids=np.stack([batch["input_ids"] for batch in batches]),  # (steps, rows, sequence_tokens)
        labels=np.stack([batch["labels"] for batch in batches]),
    )


def run(loop: str, work: dict[str, Any], folder: Path) -> Figures:
    """One loop, once, in its own process."""
    variables = environment(OMP_NUM_THREADS=str(work["threads"]), TOKENIZERS_PARALLELISM="false")
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / "train_loops.log"
    with log.open("w") as stderr:
        answer = subprocess.run(
            [sys.executable, "-m", "benchmarks.train.loops", loop, json.dumps(work), str(folder)],
            env=variables, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False,
        )  # fmt: skip
    if answer.returncode != 0:
        raise RuntimeError(f"{loop} failed; its log is {log}")
    return json.loads(answer.stdout.splitlines()[-1])


def better(before: Figures | None, now: Figures) -> Figures:
    """The larger rate, the smaller peak."""
    if before is None:
        return now
    return Figures(
        tokens_per_s=max(before["tokens_per_s"], now["tokens_per_s"]),
        peak_memory_bytes=min(before["peak_memory_bytes"], now["peak_memory_bytes"]),
        losses=now["losses"],
    )


def check(best: dict[str, Figures]) -> None:
    """A rate counts only if everyone did the same work."""
    expected = np.array(best["bare torch loop"]["losses"])
    for loop, figures in best.items():
        losses = np.array(figures["losses"])
        if losses.shape != expected.shape or np.abs(losses / expected - 1).max() > LOSS_TOLERANCE:
            raise RuntimeError(f"{loop} did other work: its losses are {losses}, the bare loop's {expected}")


def model_directory() -> Path:
    """The model's safetensors, imported now if they are not there."""
    registry = Registry(Settings(home=CACHE / "home"))
    try:
        return registry.path(registry.resolve(f"{MODEL}@1"))
    except NotFound:
        say("importing the model, once")
        command = [sys.executable, "-m", "everlearn", "import", MODEL]
        subprocess.run(command, env=environment(), check=True, stdout=sys.stderr)
        return registry.path(registry.resolve(f"{MODEL}@1"))


def show(report: Report) -> None:
    work, bare = report["work"], report["best"]["bare torch loop"]
    print(
        f"\nfull fine-tuning, {work['rows']} x {work['sequence_tokens']} tokens a step, AdamW, {work['dtype']},"
        f" {work['threads']} threads, best of {report['rounds']} rounds"
    )
    print(f"{'':24}{'tokens/s':>12}{'ratio':>8}{'peak memory MB':>18}{'ratio':>8}{'last loss':>12}")
    for loop in LOOPS:
        figures = report["best"][loop]
        speed, memory = figures["tokens_per_s"], figures["peak_memory_bytes"]
        print(
            f"{loop:24}{speed:>12.1f}{speed / bare['tokens_per_s']:>8.2f}{memory / 1e6:>18.0f}"
            f"{memory / bare['peak_memory_bytes']:>8.2f}{figures['losses'][-1]:>12.4f}"
        )
    verdict = "met" if report["met"] else "missed"
    print(
        f"\neverlearn over the bare loop: {report['ratio_to_bare_loop']:.2f}, goal {report['goal']:.2f}, {verdict}"
    )
    if (share := report["others_cpu_share"]) > BUSY_SHARE:
        print(f"Other processes used {share:.0%} of the cores meanwhile: run it again on a quiet machine.")


if __name__ == "__main__":
    main()
