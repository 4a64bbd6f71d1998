"""From raw texts to an INT8 model that the stock client asks: `python -m benchmarks.train.served`.

Two classifiers on a sentence encoder, and a translator from scratch with its own tokenizer. Each goes through the
commands that a user gives: `everlearn train`, `everlearn compress --to int8-onnx`, `everlearn serve`. What is printed is
measured on texts held out by their hash, by what the server answers over HTTP, beside the float model as the trainer
measured it and a baseline that learnt from the same texts.

bbc, spam    accuracy at `/classify`; TF-IDF of words and pairs of words with logistic regression
translation  BLEU (sacrebleu) of `client.completions.create`, English to Spanish; the Spanish of the most similar verse
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from benchmarks.compress.families import everlearn, made, served, versions
from benchmarks.machine import cpu
from benchmarks.train.corpora import bbc, mails, verses
from everlearn.printing import print_table
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import load_settings

ENCODER = "minilm"
MAX_NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", default=["bbc", "spam", "translation"])
    parser.add_argument("--texts", type=int, default=3000, help="of each classifier, drawn with a seed")
    parser.add_argument("--tokens", type=int, default=128, help="of each of a classifier's texts")
    parser.add_argument("--words", type=int, default=25, help="of a verse, at most, in either language")
    parser.add_argument("--epochs", type=float, default=6, help="of the translator")
    parser.add_argument("--asked", type=int, default=500, help="held-out verses that are translated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, help="a folder for what is made; what is there already is not made again"
    )
    chosen = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for which in chosen.which:
        with tempfile.TemporaryDirectory() as passing:
            folder = (chosen.keep or Path(passing)) / which
            folder.mkdir(parents=True, exist_ok=True)
            if which == "translation":
                rows += translator(folder, chosen)
            else:
                rows += classifier(folder, which, chosen)
    print(cpu())
    print_table(["", "measured on", "by", "measure", "value", "MB", "s"], rows)


def classifier(folder: Path, which: str, chosen: argparse.Namespace) -> list[tuple[object, ...]]:
    records = list({"bbc": bbc, "spam": mails}[which]())
    random.Random(0).shuffle(records)
    recipe = {
        "base": ENCODER,
        "objective": "classification",
        "data": {"held_fraction": 0.2},
        "sequence_tokens": chosen.tokens,
        "batch_tokens": 32 * chosen.tokens,
        "micro_batch": 16,
        "epochs": 2,
        "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
        "schedule": {"warmup_fraction": 0.1, "final_fraction": 0},
        "threads": chosen.threads,
    }
    trained, seconds = train(folder, which, records[: chosen.texts], recipe)
    asked = held(folder)
    texts = cut([each["text"] for each in asked], trained, chosen.tokens)
    smaller = compress(which)
    with served(smaller.ref) as client:
        began = time.monotonic()
        said = [label for text in texts for label in classified(client, which, text)]
        answering = time.monotonic() - began
    right = sum(one == each["label"] for one, each in zip(said, asked, strict=True)) / len(asked)
    baseline, its_seconds = tf_idf(held(folder, "train"), asked)
    on = f"{len(asked)} texts; {len(held(folder, 'train'))} learnt"
    return [
        (which, on, "encoder, float32, as trained", "accuracy", f"{trained.manifest.metrics['held_accuracy']:.3f}",
         size_mb(trained), f"{seconds:.0f}"),
        (which, on, "the same in INT8, served", "accuracy", f"{right:.3f}", size_mb(smaller), f"{answering:.0f}"),
        (which, on, "TF-IDF, logistic regression", "accuracy", f"{baseline:.3f}", "", f"{its_seconds:.0f}"),
    ]  # fmt: skip


def classified(client: httpx.Client, model: str, text: str) -> list[str]:
    answer = client.post("/classify", json={"model": model, "input": text}).raise_for_status().json()
    return [each["label"] for each in answer["data"]]


def cut(texts: list[str], version: Version, tokens: int) -> list[str]:
    """As the trainer cuts them: the gateway refuses longer texts than a model has positions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Registry(load_settings()).path(version))
    found: list[str] = []
    for text in texts:
        places = tokenizer(text, truncation=True, max_length=tokens, return_offsets_mapping=True)
        found.append(text[: max(end for _, end in places["offset_mapping"])])
    return found


def tf_idf(learnt: list[dict[str, str]], asked: list[dict[str, str]]) -> tuple[float, float]:
    """Accuracy and seconds of scikit-learn's words and pairs of words, of whole texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    began = time.monotonic()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit([each["text"] for each in learnt], [each["label"] for each in learnt])
    right = model.score([each["text"] for each in asked], [each["label"] for each in asked])
    return float(right), time.monotonic() - began


def translator(folder: Path, chosen: argparse.Namespace) -> list[tuple[object, ...]]:
    from sacrebleu import corpus_bleu

    recipe = {
        "architecture": {
            "family": "t5", "layers": 3, "hidden": 128, "heads": 4, "context": 64, "vocab": 4000
        },
        "objective": "seq2seq",
        "data": {"held_fraction": 0.05},
        "sequence_tokens": 64,
        "batch_tokens": 12 * 64,
        "micro_batch": 12,
        "epochs": chosen.epochs,
        "dropout": 0.0,
        "label_smoothing": 0.1,
        "optimizer": {"lr": 1.5e-3},
        "schedule": {"warmup_fraction": 0.05, "final_fraction": 0.02},
        "threads": chosen.threads,
    }  # fmt: skip
    records = [each for each in verses() if all(len(text.split()) <= chosen.words for text in each.values())]
    random.Random(0).shuffle(records)
    trained, seconds = train(folder, "translator", records, recipe)
    asked = held(folder)[: chosen.asked]
    wanted = [[each["target"] for each in asked]]
    learnt = held(folder, "train")
    bleu: dict[str, tuple[float, str, float]] = {}
    for by, ref, size in precisions(trained):
        with served(ref) as client:
            began = time.monotonic()
            with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none") as stock:
                said = [
                    stock.completions.create(
                        model="translator", prompt=each["source"], max_tokens=MAX_NEW_TOKENS, temperature=0
                    )
                    .choices[0]
                    .text.strip()
                    for each in asked
                ]
            bleu[by] = corpus_bleu(said, wanted).score, size, time.monotonic() - began
    for english, spanish in list(zip(asked, said, strict=True))[:3]:
        print(f"{english['source']}\n  {spanish}\n  {english['target']}")
    similar = nearest([each["source"] for each in learnt], [each["source"] for each in asked])
    bleu["the most similar verse's Spanish"] = (
        corpus_bleu([learnt[at]["target"] for at in similar], wanted).score, "", 0
    )  # fmt: skip
    bleu["the English itself"] = corpus_bleu([each["source"] for each in asked], wanted).score, "", 0
    on = f"{len(asked)} verses; {len(learnt)} learnt"
    print(f"trained in {seconds:.0f} s; held-out loss {trained.manifest.metrics['held_nll']:.3f}")
    return [
        ("translation", on, by, "BLEU", f"{score:.1f}", size, f"{taken:.0f}")
        for by, (score, size, taken) in bleu.items()
    ]


def precisions(trained: Version) -> list[tuple[str, str, str]]:
    made = [(f"tiny T5, {to}, served", compress(trained.model, to)) for to in ("fp32-onnx", "int8-onnx")]
    return [(by, version.ref, size_mb(version)) for by, version in made]


def nearest(known: list[str], asked: list[str]) -> list[int]:
    """Of each asked text, the known one with the most similar words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    learnt = words.fit_transform(known)
    return [int(place) for place in (words.transform(asked) @ learnt.T).argmax(axis=1).A1]


def train(
    folder: Path, name: str, records: Iterable[object], recipe: dict[str, Any]
) -> tuple[Version, float]:
    """Trains in a home of its own: the version, and the seconds it took, data preparation included."""
    os.environ["EVERLEARN_HOME"] = str(folder / "home")
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    if (base := recipe.get("base")) and not versions(base):
        everlearn("import", base)
    data = {"train": ["texts.jsonl"], **recipe["data"]}
    whole = {"name": name, **recipe, "data": data, "validation": {"tokens": 10**9}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole))
    seconds = everlearn("train", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"))
    return versions(name)[0], seconds


def held(folder: Path, side: str = "held") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "data" / f"{side}.jsonl").open(encoding="utf-8")]


def compress(name: str, to: str = "int8-onnx") -> Version:
    if not (version := made(name, to)):
        everlearn("compress", f"{name}@1", "--to", to)
        version = made(name, to)
    assert version
    return version


def size_mb(version: Version) -> str:
    return f"{version.manifest.size_bytes / 1e6:.1f}"


if __name__ == "__main__":
    main()
