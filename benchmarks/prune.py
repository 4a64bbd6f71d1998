"""What pruning costs, and what a distillation brings back: ``python -m benchmarks.prune MODEL_DIR [--zeros] [--heal]``.

``--zeros``: half of all weights, and two of every four, by magnitude, Wanda and SparseGPT. ``--heal``: layers dropped,
and the rest taught by the whole model, measured along the way. Texts: ``benchmarks.texts``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.texts import held, write_readable
from compress.build_pruned import pruned
from compress.calibration import calibration_windows
from compress.distill import Distillation, HiddenStates, counterparts
from compress.prune import block_influence, evenly_spaced, with_layers
from compress.quality import windows_of
from compress.recipe import Calibration, Prune
from everlearn.progress import shown
from train.data.card import DataOptions
from train.data.packing import Packer
from train.data.prepare import prepare
from train.data.store import open_store
from train.evaluate import load_causal_lm, score, torch_logits
from train.loop import StepReport, fit
from train.objectives import CausalLM
from train.recipe import FitOptions, Optimizer

TOKENS = 2048
"""Of each text."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--zeros", action="store_true")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--alone", action="store_true", help="heal without the teacher, on the same tokens")
    parser.add_argument("--drop", type=int, default=6, help="how many layers")
    parser.add_argument("--by", choices=("divergence", "influence", "even"), default="divergence")
    parser.add_argument("--tokens", type=int, default=131_072, help="of healing")
    parser.add_argument("--batch", type=int, default=2048, help="tokens a step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of the teacher's word; the rest is the text's"
    )
    parser.add_argument("--hidden", type=float, default=0.0, help="weight of the hidden states' distance")
    parser.add_argument("--every", type=int, default=16, help="steps between two measurements")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    windows = windows_of(chosen.model_dir / "tokenizer.json", held(), TOKENS)
    whole = losses(load_causal_lm(chosen.model_dir), windows)
    print(line("as it was", whole), flush=True)
    if chosen.zeros:
        zeros(chosen.model_dir, windows)
    if chosen.heal or chosen.alone:
        heal(chosen, windows, whole)


def losses(model: Any, windows: dict[str, np.ndarray]) -> dict[str, float]:
    """Nats a token on each text."""
    model.eval()
    return {name: score(torch_logits(model, rows), rows).nll for name, rows in windows.items()}


def mean(nll: dict[str, float]) -> float:
    return sum(nll.values()) / len(nll)


def line(name: str, nll: dict[str, float]) -> str:
    """A row of a table: perplexity of each text, and the mean loss."""
    return f"| {name} | {' | '.join(f'{math.exp(one):.2f}' for one in nll.values())} | {mean(nll):.4f} |"


def calibration(model_dir: Path) -> Any:
    return torch.from_numpy(calibration_windows(Calibration(), model_dir / "tokenizer.json"))


def zeros(model_dir: Path, windows: dict[str, np.ndarray]) -> None:
    """A row each way of choosing zeros."""
    ids = calibration(model_dir)
    for pattern in ("any", "2:4"):
        for method in ("magnitude", "wanda", "sparsegpt"):
            began = time.monotonic()
            with shown() as progress:
                wanted = Prune(sparsity=0.5, method=method, pattern=pattern)  # type: ignore[arg-type]
                model, made = pruned(load_causal_lm(model_dir), wanted, ids, progress)
            seconds = time.monotonic() - began
            name = f"{'50%' if pattern == 'any' else pattern}, {method}"
            print(
                f"{line(name, losses(model, windows))} zeros {made['zeros']:.3f}, {seconds:.0f} s", flush=True
            )


def heal(chosen: argparse.Namespace, windows: dict[str, np.ndarray], whole: dict[str, float]) -> None:
    """Drops layers, then teaches what is left; prints loss and the share of it that came back."""
    teacher = load_causal_lm(chosen.model_dir)
    depth = teacher.config.num_hidden_layers
    began = time.monotonic()
    ids = calibration(chosen.model_dir)
    with shown() as progress:
        if chosen.by == "influence":
            turned = block_influence(teacher, ids[:2])
            gone = sorted(range(depth), key=turned.__getitem__)[: chosen.drop]
        elif chosen.by == "even":
            gone = sorted(set(range(depth)) - set(evenly_spaced(depth - chosen.drop, depth)))
        else:
            _, made = pruned(teacher, Prune(layers=depth - chosen.drop), ids, progress)
            gone = made["dropped"]
    kept = [at for at in range(depth) if at not in gone]
    student = with_layers(teacher, kept)
    share = count(student) / count(teacher)
    print(
        f"dropped {sorted(gone)} by {chosen.by} in {time.monotonic() - began:.0f} s: {share:.1%} of the weights"
    )
    before = losses(student, windows)
    print(line("dropped, not healed", before), flush=True)
    lost = mean(before) - mean(whole)
    for name, objective in objectives(chosen, teacher, student, kept):
        learner = with_layers(teacher, kept)
        measured_s = 0.0

        def report(
            at: StepReport, learner: Any = learner, name: str = name, began: float = time.monotonic()
        ) -> None:
            nonlocal measured_s
            if at.step % chosen.every and at.step != at.steps:
                return
            start = time.monotonic()
            now = losses(learner, windows)
            learner.train()
            measured_s += time.monotonic() - start
            back = (mean(before) - mean(now)) / lost
            seconds = time.monotonic() - began - measured_s
            print(f"{line(f'{name}, {at.tokens} tokens', now)} {back:.1%} back, {seconds:.0f} s", flush=True)

        with tempfile.TemporaryDirectory() as folder, shown() as progress:
            text = Path(folder) / "texts.jsonl"
            read = write_readable(text, chosen.tokens * 6)
            print(f"characters read: {json.dumps(read)}", flush=True)
            options = DataOptions(max_tokens=512, held_fraction=0.0)
            prepare((text,), chosen.model_dir, Path(folder) / "data", options, progress)
            fit(
                learner,
                objective,
                Packer(open_store(Path(folder) / "data" / "train"), 512, 0),
                FitOptions(
                    sequence_tokens=512,
                    batch_tokens=chosen.batch,
                    micro_batch=2,
                    steps=chosen.tokens // chosen.batch,
                    optimizer=Optimizer(lr=chosen.lr),
                ),
                run_dir=Path(folder) / "run",
                on_step=report,
            )


def count(model: Any) -> int:
    """Weights, those that are shared once."""
    return sum(one.numel() for one in model.parameters())


def objectives(
    chosen: argparse.Namespace, teacher: Any, student: Any, kept: list[int]
) -> Iterator[tuple[str, Any]]:
    """With the teacher's word alone, and, where asked for, without it."""
    if chosen.heal:
        pairs = counterparts(kept, len(kept), teacher.config.num_hidden_layers)
        states = HiddenStates(teacher, student, pairs, chosen.hidden) if chosen.hidden else None
        yield (
            "healed by distillation",
            Distillation(teacher, 1.0, chosen.weight, states=states),
        )
    if chosen.alone:
        yield "trained without the teacher", CausalLM()


if __name__ == "__main__":
    main()
