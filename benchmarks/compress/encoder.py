"""A sentence encoder in INT8 beside PyTorch: ``python -m benchmarks.compress.encoder MODEL_DIR``.

The task is the inverse cloze task (arXiv 1906.00300) on real text: of all second halves, which one goes on from this
first half? Accuracy is the share whose nearest embedding is the right one. ``--sts FOLDER`` adds similarity judged by
people (a file ``*.tsv`` each year and kind, ``score<tab>text<tab>text`` a line, as SemEval's are handed on): the mean
of the files' rank correlations. Speed: passages in batches, as they are indexed, and ten words at a time, as questions
come; the same texts, the same threads, in turn, the best of some rounds. Beside it: PyTorch as it is and compiled
(where there is a C++ compiler), and onnxruntime's own dynamic INT8 of the same graph.

No passage is of the text that INT8 is calibrated on: of the shipped prose only what follows it is measured.

``--layers N`` adds the encoder that a plan makes of it: N layers, healed on ``--steps`` steps of text that is not
measured, in INT8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import cpu
from benchmarks.texts import held, readable
from compress.plan import follow
from compress.recipe import Calibration, CompressPlan, PlannedTarget, Prune, Teaching
from compress.sentence_encoder import inputs_of, load_encoder, truncating_tokenizer
from compress.targets.onnx_encoder import session_embed
from everlearn.importing.sources import import_model
from everlearn.progress import Progress, shown
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from train.evaluate.held_out_text import HELD_OUT_TOKENS, held_out_text
from train.recipe import Data, Optimizer

WORDS = 60
"""Of a passage; its halves have 30 each."""
PASSAGES = 500
"""Of each kind of text, at most; what follows may be learnt."""
BATCH, ROUNDS, TIMED_BATCHES = 32, 3, 12
QUESTION_WORDS, QUESTIONS = 10, 300
KINDS = ("jargon", "scripture", "python")
PLAIN, COMPILED = "onnxruntime's dynamic INT8", "PyTorch, float32, torch.compile"

Encode = Callable[[list[str]], np.ndarray]


def words_of(kind: str, tokenizer_file: Path) -> list[str]:
    """All of a kind that the encoder is not calibrated on: what models are measured on elsewhere comes first."""
    texts = {**held(), "jargon": uncalibrated(tokenizer_file)}
    return "\n".join((texts[kind], *readable().get(kind, []))).split()


def uncalibrated(tokenizer_file: Path) -> str:
    """What follows the calibration set in the shipped prose."""
    calibration = Calibration()
    held_back = -(-HELD_OUT_TOKENS // calibration.sequence_tokens) * calibration.sequence_tokens
    encoded = plain_tokenizer(tokenizer_file).encode(held_out_text().text, add_special_tokens=False)
    last = min(held_back + calibration.tokens, len(encoded.ids)) - 1
    return held_out_text().text[encoded.offsets[last][1] :]


def plain_tokenizer(file: Path) -> Any:
    """Neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def passages(tokenizer_file: Path) -> list[tuple[str, str]]:
    """First and second halves of passages, from texts that come with everlearn and Python."""
    found: list[tuple[str, str]] = []
    for kind in KINDS:
        words = words_of(kind, tokenizer_file)[: PASSAGES * WORDS]
        for start in range(0, len(words) - WORDS, WORDS):
            half = start + WORDS // 2
            found.append((" ".join(words[start:half]), " ".join(words[half : start + WORDS])))
    return found


def write_unmeasured(path: Path, tokenizer_file: Path) -> int:
    """All text of these and other kinds that no passage is of, as JSON lines; returns its words."""
    kinds = {kind: words_of(kind, tokenizer_file)[PASSAGES * WORDS :] for kind in KINDS}
    rest = {kind: " ".join(texts).split() for kind, texts in readable().items() if kind not in KINDS}
    with path.open("w", encoding="utf-8") as file:
        for words in (*kinds.values(), *rest.values()):
            for start in range(0, len(words), 4 * WORDS):
                file.write(json.dumps({"text": " ".join(words[start : start + 4 * WORDS])}) + "\n")
    return sum(map(len, (*kinds.values(), *rest.values())))


def nearest(encode: Encode, pairs: list[tuple[str, str]]) -> np.ndarray:
    """For each first half the number of the second half nearest to it; its own is the right one."""
    firsts, seconds = (embedded(encode, [pair[at] for pair in pairs]) for at in (0, 1))
    return (firsts @ seconds.T).argmax(1)


def similarity(encode: Encode, folder: Path) -> float:
    """The mean over ``folder``'s files of the rank correlation between people's scores and cosines."""
    from scipy.stats import spearmanr

    found: list[float] = []
    for file in sorted(folder.glob("*.tsv")):
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        rows = [row for row in rows if len(row) >= 3 and row[0].strip()]
        firsts, seconds = (embedded(encode, [row[at] for row in rows]) for at in (1, 2))
        found.append(float(spearmanr([float(row[0]) for row in rows], (firsts * seconds).sum(1)).statistic))
    return float(np.mean(found))


def embedded(encode: Encode, texts: list[str], batch: int = BATCH) -> np.ndarray:
    """float32 (texts, dim)."""
    return np.concatenate([encode(texts[at : at + batch]) for at in range(0, len(texts), batch)])


def encoder_of(directory: Path, tokenizer: Any, threads: int) -> Encode:
    """An exported one as ``serve`` runs it, by onnxruntime; another one in PyTorch, float32."""
    if (directory / "model.onnx").exists():
        embed = session_embed(directory / "model.onnx", threads)
    else:
        import torch

        torch.set_num_threads(threads)
        embed = load_encoder(directory).embed
    return lambda texts: embed(inputs_of(tokenizer, texts))


def planned(registry: Registry, chosen: argparse.Namespace, progress: Progress) -> Version:
    """What is left of the encoder with fewer layers, healed and in INT8; the last version of a plan."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        tokenizer_file = registry.path(registry.weights("encoder@1")) / "tokenizer.json"
        print(f"{write_unmeasured(text, tokenizer_file)} words to learn from")
        heal = Teaching(
            data=Data(train=(text,)),
            hidden=chosen.hidden,
            sequence_tokens=128,
            batch_tokens=chosen.batch_tokens,
            micro_batch=64,
            steps=chosen.steps,
            optimizer=Optimizer(lr=chosen.lr),
        )
        plan = CompressPlan(
            prune=Prune(layers=chosen.layers), heal=heal, targets=(PlannedTarget(to="int8-onnx"),)
        )
        *_, last = follow(registry.settings, "encoder@1", plan, progress)
    return last


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sts", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--hidden", type=float, default=1.0)
    parser.add_argument("--home", type=Path, help="where versions are kept; the same plan goes on there")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, shown() as progress:
        settings = Settings(home=chosen.home or Path(folder))
        registry = Registry(settings)
        import_model(settings, str(chosen.model_dir.absolute()), name="encoder")
        made = {"PyTorch, float32": registry.weights("encoder@1")}
        for to in ("fp32-onnx", "int8-onnx"):
            *_, made[to] = follow(
                settings, "encoder@1", CompressPlan(targets=(PlannedTarget(to=to),)), progress
            )
        if chosen.layers:
            made[f"int8-onnx, {chosen.layers} layers"] = planned(registry, chosen, progress)
        compare(registry, made, chosen)


def compare(registry: Registry, made: Mapping[str, Version], chosen: argparse.Namespace) -> None:
    """Prints a row for each version, beside the first."""
    parent = registry.path(next(iter(made.values())))
    pairs = passages(parent / "tokenizer.json")
    tokenizer = truncating_tokenizer(parent)
    encoders = {
        name: encoder_of(registry.path(version), tokenizer, chosen.threads) for name, version in made.items()
    }
    sizes = {name: weights_bytes(registry.path(version)) for name, version in made.items()}
    plain = registry.settings.home / "plain.onnx"
    quantize_plainly(registry.path(made["fp32-onnx"]) / "model.onnx", plain)
    embed = session_embed(plain, chosen.threads)
    encoders[PLAIN] = lambda texts: embed(inputs_of(tokenizer, texts))
    sizes[PLAIN] = plain.stat().st_size
    try:
        encoders[COMPILED] = compiled(parent, tokenizer)
        sizes[COMPILED] = sizes[next(iter(made))]
    except Exception as error:  # noqa: BLE001 (a compiler that is missing or fails is told, and the rest measured)
        print(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    picked = {name: nearest(encode, pairs) for name, encode in encoders.items()}
    right = {name: float((one == np.arange(len(pairs))).mean()) for name, one in picked.items()}
    judged = {name: similarity(encode, chosen.sts) for name, encode in encoders.items()} if chosen.sts else {}
    best = timed(encoders, pairs)
    first = next(iter(made))
    print(f"{cpu()}; {chosen.threads} threads")
    print(
        f"{len(pairs)} passages of {WORDS} words; speed on {BATCH * TIMED_BATCHES} of them, batches of {BATCH}, "
        f"and on {QUESTIONS} questions of {QUESTION_WORDS} words, one at a time"
    )
    print(
        "| | MB | of fp32 | accuracy | of fp32's | the same pick | similarity | of fp32's | passages/s | times PyTorch "
        "| ms a question | times PyTorch |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in encoders:
        in_batches, alone = best[name]
        told = f"{judged[name]:.4f} | {judged[name] / judged[first]:.2%}" if judged else " | "
        print(
            f"| {name} | {sizes[name] / 1e6:.1f} | {sizes[name] / sizes[first]:.1%} | {right[name]:.4f} "
            f"| {right[name] / right[first]:.2%} ± {uncertain(picked[name], picked[first]):.2%} | {(picked[name] == picked[first]).mean():.1%} | {told} "
            f"| {BATCH * TIMED_BATCHES / in_batches:.0f} | {best[first][0] / in_batches:.2f} "
            f"| {1000 * alone / QUESTIONS:.2f} | {best[first][1] / alone:.2f} |"
        )


def uncertain(picks: np.ndarray, reference: np.ndarray) -> float:
    """The standard error of a ratio of two accuracies on the same passages; picks: (n,), n itself is right."""
    ours, theirs = (one == np.arange(len(one)) for one in (picks, reference))
    apart = ours - theirs * (ours.mean() / theirs.mean())
    return float(apart.std() / np.sqrt(len(apart)) / theirs.mean())


def quantize_plainly(graph: Path, result: Path) -> None:
    """By onnxruntime's defaults: weights of full 8 bits with one scale each matrix, nothing smoothed."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(graph, result)


def compiled(model_dir: Path, tokenizer: Any) -> Encode:
    """PyTorch's encoder by torch.compile, float32, tried once."""
    encoder = load_encoder(model_dir)
    encoder.compile(dynamic=True)
    encode: Encode = lambda texts: encoder.embed(inputs_of(tokenizer, texts))
    for texts in (["a question"], ["a first passage", "and a second one"]):
        encode(texts)
    return encode


def weights_bytes(directory: Path) -> int:
    """Of the weights in PyTorch; of an export all files, since its graph is among them."""
    files: list[Path] = list(directory.glob("*.safetensors")) or list(directory.iterdir())
    return sum(file.stat().st_size for file in files if file.is_file())


def timed(encoders: Mapping[str, Encode], pairs: list[tuple[str, str]]) -> dict[str, list[float]]:
    """Seconds for the passages in batches, and for the questions one at a time: the best round of each."""
    texts = [first + " " + second for first, second in pairs[: BATCH * TIMED_BATCHES]]
    questions = [" ".join(first.split()[:QUESTION_WORDS]) for first, _ in pairs[:QUESTIONS]]
    best: dict[str, Any] = {name: [float("inf")] * 2 for name in encoders}
    for _ in range(ROUNDS):
        for name, encode in encoders.items():
            for at, (asked, batch) in enumerate(((texts, BATCH), (questions, 1))):
                began = time.perf_counter()
                embedded(encode, asked, batch)
                best[name][at] = min(best[name][at], time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
