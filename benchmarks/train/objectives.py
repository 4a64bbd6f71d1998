"""Models from scratch beside n-gram models, on the same split and tokens: ``python -m benchmarks.train.objectives``.

From raw text of a Debian package (Perl's manual, a document per section), one recipe makes a tokenizer and a model.
Its validation loss stands beside a 5-gram model's with modified Kneser-Ney smoothing:

causal-lm        the next token, from those before it
masked-lm        hidden tokens; the n-gram model knows the true tokens before each
span-corruption  the target; the n-gram model has learnt from the targets of the training rows
dense, experts   two decoders with the same active parameters, of Llama's and DeepSeek's form
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train.corpora import sections
from benchmarks.train.kneser_ney import Ids, KneserNey
from everlearn.printing import print_table
from everlearn.progress import shown
from train.data.corruption.masking import MaskedRows
from train.data.corruption.spans import SpanRows
from train.data.corruption.word_starts import read_vocabulary
from train.data.packing import IGNORED, PADDING, Packer
from train.data.store import open_store
from train.data.tokenize import Tokens, marks
from train.launch import launch
from train.recipe import TrainRecipe

SIZES: dict[str, dict[str, Any]] = {
    "causal-lm": {"family": "llama"},
    "masked-lm": {"family": "modernbert"},
    "span-corruption": {"family": "t5"},
    "dense": {"family": "llama"},
    "experts": {"family": "deepseek", "experts": {"count": 8, "per_token": 2, "shared": 1}},
}


def train(
    objective: str, source: Path, folder: Path, chosen: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {
        "layers": chosen.layers,
        "hidden": chosen.hidden,
        "heads": 4,
        "context": 512,
        "vocab": chosen.vocab,
    }
    recipe = TrainRecipe.model_validate(
        {
            "architecture": SIZES[objective] | sizes,
            "data": {"train": [str(source)], "held_fraction": 0.05},
            "sequence_tokens": 256,
            "batch_tokens": chosen.batch_tokens,
            "micro_batch": min(8, chosen.batch_tokens // 256),
            "steps": chosen.steps,
            "optimizer": {"lr": chosen.lr},
            "schedule": {"warmup_fraction": 0.05, "final_fraction": 0.05},
            "dropout": 0.0,
            "threads": chosen.threads,
            "validation": {"tokens": 10**9},
        }
    )
    with shown() as progress:
        outcome = launch(recipe, model_dir=None, tokenizer_dir=None, run_dir=folder, progress=progress)
    return outcome.metrics, outcome.recipe


def pieces(packer: Packer) -> list[Ids]:
    batch = packer.rows_of(range(packer.rows))
    found: list[Ids] = []
    for ids, documents in zip(batch["input_ids"], batch["document_ids"], strict=True):
        borders = np.flatnonzero(np.diff(documents)) + 1
        found += [
            part
            for part, of in zip(np.split(ids, borders), np.split(documents, borders), strict=True)
            if of[0] != PADDING
        ]
    return found


def beside(objective: str, run: Path) -> dict[str, float]:
    """Losses of the baselines, in nats per target, over the targets that validation measures."""
    tokenizer, vocabulary = run / "tokenizer", read_vocabulary(run / "tokenizer")
    learn, held = (Packer(open_store(run / "data" / side), 256, 0) for side in ("train", "held"))
    size = len(vocabulary.begins)
    if objective == "masked-lm":
        learn, held = (packer.marked(*marks(tokenizer)) for packer in (learn, held))
        assert vocabulary.mask is not None
        rows, whole = MaskedRows(held, vocabulary, vocabulary.mask, 0), held.batch(0, held.rows)
        hidden = rows.batch(0, held.rows)["labels"] != IGNORED
        model = KneserNey(pieces(learn), size)
        losses, counts = (
            np.zeros(hidden.shape),
            np.bincount(np.concatenate(pieces(learn)), minlength=size) + 1.0,
        )
        for line, documents in enumerate(whole["document_ids"]):
            for piece in set(documents) - {PADDING}:
                places = documents == piece
                losses[line, places] = -model.log_probabilities(whole["input_ids"][line, places])
        counts[vocabulary.special] = 1.0
        alone = -np.log(counts / counts.sum())[whole["input_ids"][hidden]]
        return {
            "5-gram Kneser-Ney, from the left": float(losses[hidden].mean()),
            "unigram": float(alone.mean()),
        }
    if objective == "span-corruption":
        tokens = Tokens(tokenizer)
        sides = [
            SpanRows(packer.marked(tokens.bos, tokens.eos), vocabulary.sentinels, 0, 0)
            for packer in (learn, held)
        ]
        known, asked = (targets(side.batch(0, side.rows)) for side in sides)
        model = KneserNey(known, size)
        return {
            "5-gram Kneser-Ney of targets": -float(
                np.concatenate([model.log_probabilities(one) for one in asked]).mean()
            )
        }
    model = KneserNey(pieces(learn), size)
    return {
        "5-gram Kneser-Ney": -float(
            np.concatenate([model.log_probabilities(one)[1:] for one in pieces(held)]).mean()
        )
    }


def targets(batch: Any) -> list[Ids]:
    found: list[Ids] = []
    for ids, documents in zip(batch["labels"], batch["decoder_document_ids"], strict=True):
        found += [ids[documents == piece] for piece in dict.fromkeys(documents) if piece != PADDING]
    return [one for one in found if len(one)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objectives", nargs="*", default=["causal-lm", "masked-lm", "span-corruption"])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--lr", type=float, default=2e-3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "texts.jsonl"
        source.write_text("\n".join(json.dumps({"text": text}) for text in sections(chosen.megabytes)))
        for objective in chosen.objectives:
            run = Path(name) / objective
            metrics, _ = train(objective, source, run, chosen)
            rows: list[tuple[object, ...]] = [("this model, before", f"{metrics['held_nll_before']:.3f}")]
            rows += [("this model", f"{metrics['held_nll']:.3f}")]
            rows += [(what, f"{loss:.3f}") for what, loss in beside(objective, run).items()]
            rows += [("tokens seen", metrics["tokens"]), ("seconds", metrics["seconds"])]
            print_table([objective, "nats per target"], rows)


if __name__ == "__main__":
    main()
