"""What pruning costs, and what a distillation brings back: ``python -m benchmarks.compress.prune MODEL_DIR [--zeros] [--heal]``.

``--zeros``: half of all weights, and two of every four, by magnitude, Wanda and SparseGPT. ``--heal``: layers dropped,
and the rest taught by the whole model, measured along the way. Texts: ``benchmarks.texts``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.texts import held, write_readable
from compress.distill.decoder_objective import Distillation, HiddenStates, counterparts
from compress.distill.kept_predictions import KeptDistillation, KeptPredictions
from compress.measure.quality import windows_of
from compress.prune.layers import block_influence, evenly_spaced, least_missed, with_layers
from compress.prune.prune_decoder import pruned
from compress.prune.reconstruct import reconstruct
from compress.quantize.calibration import calibration_windows
from compress.recipe import Calibration, Prune
from everlearn.progress import Progress, shown, silent
from train.data.options import DataOptions
from train.data.packing import Packer
from train.data.prepare import prepare
from train.data.store import open_store
from train.evaluate.logits import torch_logits
from train.evaluate.perplexity import score
from train.loop import choose_dtype, fit
from train.models.load import load_causal_lm
from train.objectives.causal import CausalLM
from train.objectives.logits import vocabulary
from train.recipe import FitOptions, Optimizer
from train.report import StepReport

TOKENS = 2048
"""Of each text."""
SEQUENCE = 512


def main() -> None:
    """Entry point."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")  # a line for each layer, among the rows
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--zeros", action="store_true")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--alone", action="store_true", help="heal without the teacher, on the same tokens")
    parser.add_argument("--drop", type=int, default=6, help="how many layers")
    parser.add_argument("--by", choices=("divergence", "influence", "even"), default="divergence")
    parser.add_argument("--tokens", type=int, default=131_072, help="of healing")
    parser.add_argument("--batch", type=int, default=1024, help="tokens a step")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of the teacher's word; the rest is the text's"
    )
    parser.add_argument("--epochs", type=int, default=1, help="how often the tokens are read")
    parser.add_argument(
        "--keep-predictions", type=int, help="tokens of each position; the teacher is asked once"
    )
    parser.add_argument("--hidden", type=float, default=0.0, help="weight of the hidden states' distance")
    parser.add_argument(
        "--reconstruct", type=int, default=16384, help="tokens to solve for the gaps on, first"
    )
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
            gone = least_missed(
                teacher, ids, chosen.drop, lambda done, total: progress("trying", done / total)
            )
    kept = [at for at in range(depth) if at not in gone]
    dropped = with_layers(teacher, kept)
    print(
        f"dropped {sorted(gone)} by {chosen.by} in {time.monotonic() - began:.0f} s: "
        f"{count(dropped) / count(teacher):.1%} of the weights"
    )
    before = losses(dropped, windows)
    print(line("dropped, not healed", before), flush=True)

    def told(name: str, model: Any, tokens: int, seconds: float) -> None:
        now = losses(model, windows)
        back = (mean(before) - mean(now)) / (mean(before) - mean(whole))
        print(f"{line(f'{name}, {tokens} tokens', now)} {back:.1%} back, {seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder, shown() as progress:
        packer = text_to_learn(chosen, Path(folder), progress)
        if chosen.heal:
            learn(chosen, with_layers(teacher, kept), packer, told, teacher, kept)
        if chosen.alone:
            learn(chosen, with_layers(teacher, kept), packer, told)


def learn(
    chosen: argparse.Namespace,
    student: Any,
    packer: Packer,
    told: Callable[[str, Any, int, float], None],
    teacher: Any = None,
    kept: Sequence[int] = (),
) -> None:
    """By the teacher's word, or without one; ``told`` measures and prints, and its time is not counted."""
    began, measured_s = time.monotonic(), 0.0
    name, objective = "trained without the teacher", CausalLM()

    def tell(tokens: int) -> None:
        nonlocal measured_s
        start = time.monotonic()
        told(name, student, tokens, start - began - measured_s)
        student.train()
        measured_s += time.monotonic() - start

    def on_step(at: StepReport) -> None:
        if at.step % chosen.every == 0 or at.step == at.steps:
            tell(at.tokens)

    if teacher is not None:
        name = "healed by distillation"
        if rows := chosen.reconstruct // SEQUENCE:
            batch = {key: torch.as_tensor(one) for key, one in packer.batch(0, rows).items()}
            distances = reconstruct(teacher, student, kept, batch)
            print(f"distance on held-out tokens, before and after: {json.dumps(distances)}")
            tell(0)
        pairs = counterparts(kept, len(kept), teacher.config.num_hidden_layers)
        states = HiddenStates(teacher, student, pairs, chosen.hidden) if chosen.hidden else None
        objective = Distillation(teacher, 1.0, chosen.weight, states=states)
    options = FitOptions(
        sequence_tokens=SEQUENCE,
        batch_tokens=chosen.batch,
        micro_batch=2,
        steps=chosen.epochs * chosen.tokens // chosen.batch,
        optimizer=Optimizer(lr=chosen.lr),
    )
    batches: Any = packer
    with tempfile.TemporaryDirectory() as folder:
        if teacher is not None and chosen.keep_predictions:
            name = f"healed by {chosen.keep_predictions} kept predictions"
            batches = asked_once(chosen, teacher, packer, options, Path(folder))
            objective = KeptDistillation(batches, 1.0, chosen.weight)
        fit(student, objective, batches, options, run_dir=Path(folder), on_step=on_step)


def asked_once(
    chosen: argparse.Namespace, teacher: Any, packer: Packer, options: FitOptions, folder: Path
) -> KeptPredictions:
    """What the teacher predicts; says what asking took."""
    began, asked = time.monotonic(), options.steps * options.rows if options.steps else packer.rows
    predictions = KeptPredictions(
        packer, asked, folder / "predictions", chosen.keep_predictions, vocabulary(teacher), {}
    )
    predictions.ask(teacher, 1.0, choose_dtype(options.dtype, torch.device("cpu")), silent)
    size = sum(file.stat().st_size for file in (folder / "predictions").iterdir())
    print(f"asked the teacher in {time.monotonic() - began:.0f} s, {size / 1e6:.1f} MB", flush=True)
    return predictions


def text_to_learn(chosen: argparse.Namespace, folder: Path, progress: Progress) -> Packer:
    """About as much as will be seen once, of texts of the same kinds as those measured on, and none of those."""
    read = write_readable(folder / "texts.jsonl", chosen.tokens * 6)
    print(f"characters read: {json.dumps(read)}", flush=True)
    options = DataOptions(max_tokens=SEQUENCE, held_fraction=0.0)
    prepare((folder / "texts.jsonl",), chosen.model_dir, folder / "data", options, progress)
    return Packer(open_store(folder / "data" / "train"), SEQUENCE, 0)


def count(model: Any) -> int:
    """Weights, those that are shared once."""
    return sum(one.numel() for one in model.parameters())


if __name__ == "__main__":
    main()
