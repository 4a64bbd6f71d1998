"""CLIP from scratch on emoji and their names in English and Chinese, beside nearest neighbours.

    python -m benchmarks.train.clip [--json out.json]

Pictures: npm's emoji-datasource-* 16.0.0, 64 pixels, of one vendor or of several (--vendors); names: emojibase-data 17.0.0. A tenth of
the emoji is held out with all pictures and names, on which the recipe and the number of neighbours were chosen, and another
tenth, that no choice has seen, is reported: Twitter's picture and the name. The baseline learns nothing from the same pairs:
the training pictures nearest in pixels lend their texts, compared by TF-IDF of their letters; and the other way round.
Canonical correlation analysis is shown as well: a linear map of the same pixels and letters each, with ridges chosen on the held-out
tenth (Hardoon et al. 2004).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cpu
from benchmarks.train.corpora import npm_package
from everlearn.images import pixels
from everlearn.progress import shown
from train.launch import launch
from train.objectives.contrastive import RECALLS, ranked
from train.recipe import TrainRecipe

NAMES = "emojibase-data@17.0.0"
VENDORS = ("twitter", "apple", "google", "facebook")
ASKED = "twitter"
SIDES = ("train", "held", "test")
LANGUAGES = {"en": "English", "zh": "Chinese"}
NEIGHBOURS = (5, 10, 20, 40)
RIDGES = ((0.03, 0.1), (0.1, 0.1), (0.3, 0.1), (0.1, 0.3), (0.3, 0.3), (1.0, 0.3))
"""Of pictures and of texts, in shares of the mean variance."""
DIRECTIONS = 256
RECIPE = {
    "architecture": {
        "family": "clip",
        "layers": 1,
        "hidden": 96,
        "heads": 4,
        "context": 24,
        "vocab": 4400,
        "images": {"size": 16, "patch": 16, "hidden": 128, "layers": 1},
    },
    "sequence_tokens": 24,
    "batch_tokens": 24 * 128,
    "micro_batch": 128,
    "steps": 3000,
    "dropout": 0.1,
    "threads": 1,
    "optimizer": {"lr": 3e-3, "weight_decay": 0.3},
    "schedule": {"warmup_fraction": 0.05, "final_fraction": 0.05},
    "contrastive": {"augment": {"shift": 0.06, "zoom": 0.1, "rotate": 6, "colour": 0.12, "words": 0.25}},
}
"""Few pictures: small whole ones as one patch, and a layer in each tower, generalize better than more layers and smaller patches."""


def main() -> None:
    """Prints the table of docs/images-and-texts.md."""
    parser = argparse.ArgumentParser(description="CLIP on emoji and their names, beside nearest neighbours.")
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--vendors", nargs="+", choices=VENDORS, default=[ASKED], help="whose pictures to learn from"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    chosen = parser.parse_args()
    recipe = {**RECIPE, "steps": chosen.steps, "threads": chosen.threads}
    report = measure(recipe, chosen.vendors)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


@dataclass(frozen=True)
class Pair:
    """One picture, as PNG, and one text."""

    image: bytes
    text: str


Sides = dict[str, dict[str, list[Pair]]]
"""By language, then by side: train, held, test."""


def measure(recipe: dict[str, Any], vendors: Sequence[str]) -> dict[str, Any]:
    pairs = emoji_pairs(vendors)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "img").mkdir()
        files = {
            side: [written(pairs[of][side], folder, f"{of}-{side}") for of in LANGUAGES] for side in SIDES
        }
        data = {"train": files["train"], "held": files["held"]}
        began = time.monotonic()
        with shown() as progress:
            outcome = launch(
                TrainRecipe.model_validate({**recipe, "data": data}),
                model_dir=None,
                tokenizer_dir=None,
                run_dir=folder / "run",
                progress=progress,
            )
        report: dict[str, Any] = {"cpu": cpu(), "seconds": round(time.monotonic() - began, 1)}
        report["pairs"] = sum(len(pairs[of]["train"]) for of in LANGUAGES)
        report["chosen_on"] = {key: value for key, value in outcome.metrics.items() if "recall" in key}
        for side in ("held", "test"):
            report[side] = {}
            for of in LANGUAGES:
                known, asked = pairs[of]["train"], pairs[of][side]
                shown_as, said_as = embedded(
                    outcome.directory, asked, recipe["architecture"]["images"]["size"]
                )
                report[side][of] = {
                    "asked": len(asked),
                    "clip": recalls(shown_as @ said_as.T),
                    **{f"neighbours {k}": recalls(neighbours(known, asked, k)) for k in NEIGHBOURS},
                    **{f"CCA {ridges}": recalls(correlated(known, asked, *ridges)) for ridges in RIDGES},
                }
        return report


def emoji_pairs(vendors: Sequence[str]) -> Sides:
    """Every vendor's picture of each emoji with its name to learn from; one vendor's to be asked for.

    An emoji is on one side with all of its pictures, by the hash of the one that is asked for.
    """
    folders = {vendor: npm_package(f"emoji-datasource-{vendor}@16.0.0") for vendor in {ASKED, *vendors}}
    names = npm_package(NAMES)
    listed = json.loads((folders[ASKED] / "emoji.json").read_text())
    made: Sides = {of: {side: [] for side in SIDES} for of in LANGUAGES}
    for of in LANGUAGES:
        known = {each["hexcode"]: each for each in json.loads((names / of / "data.json").read_text())}
        for emoji in listed:
            entry = known.get(emoji["unified"]) or known.get(emoji["unified"].replace("-FE0F", ""))
            if not entry or not emoji[f"has_img_{ASKED}"]:
                continue
            pictures = {
                vendor: (folder / "img" / vendor / "64" / emoji["image"]).read_bytes()
                for vendor, folder in folders.items()
                if emoji[f"has_img_{vendor}"]
            }
            if (side := side_of(pictures[ASKED])) != "train":
                made[of][side].append(Pair(pictures[ASKED], entry["label"]))
                continue
            made[of][side] += [
                Pair(pictures[vendor], entry["label"]) for vendor in vendors if vendor in pictures
            ]
    return made


def side_of(picture: bytes) -> str:
    """A tenth is held out, and another tenth to test: as preparing data decides it for a picture."""
    named = json.dumps(hashlib.sha256(picture).hexdigest())
    at = int(hashlib.sha256(named.encode()).hexdigest()[32:48], 16) / 2**64
    return "held" if at < 0.1 else "test" if at < 0.2 else "train"


def written(pairs: list[Pair], folder: Path, name: str) -> str:
    """One file of records in ``folder``, the pictures beside it."""
    lines: list[str] = []
    for pair in pairs:
        image = f"img/{hashlib.sha256(pair.image).hexdigest()}.png"
        (folder / image).write_bytes(pair.image)
        lines.append(json.dumps({"image": image, "text": pair.text}, ensure_ascii=False) + "\n")
    file = folder / f"{name}.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def embedded(
    model_dir: Path, asked: list[Pair], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By transformers alone, from what was registered."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from train.objectives.contrastive import pixel_values, unit

    model = CLIPModel.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = tokenizer(
        [pair.text for pair in asked], padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    images = torch.from_numpy(np.stack([pixels(pair.image, size) for pair in asked]))
    with torch.no_grad():
        shown_as = unit(model.get_image_features(pixel_values(images)).pooler_output)
        said_as = unit(model.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output)
    return shown_as.numpy(), said_as.numpy()


def neighbours(known: list[Pair], asked: list[Pair], most: int) -> NDArray[np.float32]:
    """How near each picture and each name are, float32 (pictures, names): the mean likeness of the name to those of the
    ``most`` pictures most like it, and of the picture to those of the ``most`` names most like it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    known_texts = letters.fit_transform([pair.text for pair in known])
    asked_texts = letters.transform([pair.text for pair in asked])
    by_text = np.asarray((asked_texts @ known_texts.T).todense(), dtype=np.float32)  # (asked, known)
    by_pixel = _small(asked) @ _small(known).T  # (asked, known)
    through_pictures = _nearest(by_pixel, most) @ by_text.T  # (pictures, names)
    through_names = _nearest(by_text, most) @ by_pixel.T  # (names, pictures)
    return through_pictures + through_names.T


def correlated(
    known: list[Pair], asked: list[Pair], of_pictures: float, of_texts: float
) -> NDArray[np.float32]:
    """Cosines of pictures and names, float32 (pictures, names), in the space of kernel canonical correlation analysis."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    texts = letters.fit_transform([pair.text for pair in known]).toarray()
    pictures = _small(known)
    bases: list[NDArray[np.float64]] = []
    seen: list[NDArray[np.float64]] = []
    said = letters.transform([pair.text for pair in asked]).toarray()
    for train, test, ridge in ((pictures, _small(asked), of_pictures), (texts, said, of_texts)):
        mean = train.mean(0)
        kernel = ((train - mean) @ (train - mean).T).astype(np.float64)
        scale = len(train) / np.trace(kernel)
        away = ((test - mean) @ (train - mean).T) * scale
        values, vectors = np.linalg.eigh(kernel * scale)
        whitened = vectors / (np.maximum(values, 0) + ridge)
        bases.append(whitened @ (vectors * np.maximum(values, 0)).T)
        seen.append(away @ whitened @ vectors.T)
    left, strengths, right = np.linalg.svd(bases[0] @ bases[1].T)
    first = seen[0] @ left[:, :DIRECTIONS] * strengths[:DIRECTIONS]
    second = seen[1] @ right[:DIRECTIONS].T * strengths[:DIRECTIONS]
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    return (first @ second.T).astype(np.float32)


def _small(pairs: list[Pair]) -> NDArray[np.float32]:
    """Means of 4 by 4 of a picture's 64 by 64 pixels without what all have in common, of length 1; float32 (n, 768)."""
    looks = {image: pixels(image, 64) for image in {pair.image for pair in pairs}}
    images = np.stack([looks[pair.image] for pair in pairs])
    blocks = (
        images.reshape(len(images), 16, 4, 16, 4, 3).mean((2, 4), dtype=np.float32).reshape(len(images), -1)
    )
    away = blocks - blocks.mean(1, keepdims=True)
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)


def _nearest(likeness: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Weights of the nearest ones: the likeness where it is among the largest, 0 elsewhere."""
    least = np.sort(likeness, axis=1)[:, -most][:, None]
    return np.where(likeness >= least, likeness, 0)


def recalls(scores: NDArray[np.float32]) -> dict[str, float]:
    """scores: (pictures, names). Ties count against it."""
    keys = np.arange(2.0 * len(scores)).reshape(-1, 2)
    axes = np.eye(len(scores), dtype=np.float32)
    made: dict[str, float] = {}
    for name, each in (("image_to_text", scores), ("text_to_image", scores.T)):
        ranks = ranked(np.ascontiguousarray(each), axes, keys)
        made |= {f"{name}_at_{most}": round(float((ranks < most).mean()), 4) for most in RECALLS}
    return made


def show(report: dict[str, Any]) -> None:
    """The neighbours' number is the one that is best on the held-out pictures."""
    print(f"{report['pairs']} pairs, {report['seconds']:.0f} s on {report['cpu']}")
    print("| names | asked | by | picture to name: recall@1 | @5 | name to picture: recall@1 | @5 |")
    print("|---|---|---|---|---|---|---|")
    for of, title in LANGUAGES.items():
        others = [
            max(
                (by for by in report["held"][of] if by.startswith(kind)),
                key=lambda by: sum(report["held"][of][by].values()),
            )
            for kind in ("neighbours", "CCA")
        ]
        for side in ("held", "test"):
            row = report[side][of]
            for by in ("clip", *others):
                figures = " | ".join(f"{value:.3f}" for value in row[by].values())
                print(f"| {title}, {side} | {row['asked']} | {by} | {figures} |")
        chance = f"{1 / row['asked']:.3f} | {5 / row['asked']:.3f}"
        print(f"| {title} | {row['asked']} | chance | {chance} | {chance} |")


if __name__ == "__main__":
    main()
