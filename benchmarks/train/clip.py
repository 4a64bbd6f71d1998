"""CLIP from scratch on emoji and their names in English and Chinese, beside nearest neighbours.

    python -m benchmarks.train.clip [--json out.json] [--emoji FOLDER --names FOLDER]

Pictures: npm's emoji-datasource-twitter 16.0.0, 64 pixels; names: emojibase-data 17.0.0 (both fetched by npm, unless
unpacked folders are given). A tenth of the pictures is held out with its names, on which the recipe was chosen, and another
tenth, that no choice has seen, is reported. The baseline has nothing to learn: the five training pictures nearest in
pixels lend their names, compared by TF-IDF of their letters; and the other way round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cpu
from benchmarks.train.corpora import npm_package
from everlearn.images import pixels
from train.data.store import TokenStore, open_store
from train.launch import launch
from train.objectives.contrastive import RECALLS, ranked
from train.recipe import TrainRecipe

EMOJI, NAMES = "emoji-datasource-twitter@16.0.0", "emojibase-data@17.0.0"
LANGUAGES = {"en": "English", "zh": "Chinese"}
NEIGHBOURS = 5
RECIPE = {
    "architecture": {
        "family": "clip",
        "layers": 1,
        "hidden": 96,
        "heads": 4,
        "context": 24,
        "vocab": 3000,
        "images": {"size": 32, "patch": 32, "hidden": 128, "layers": 2},
    },
    "sequence_tokens": 24,
    "batch_tokens": 24 * 128,
    "micro_batch": 128,
    "steps": 4000,
    "dropout": 0.1,
    "threads": 1,
    "optimizer": {"lr": 3e-3, "weight_decay": 0.3},
    "schedule": {"warmup_fraction": 0.05, "final_fraction": 0.05},
    "contrastive": {"augment": {"shift": 0.06, "zoom": 0.1, "rotate": 6, "colour": 0.12, "words": 0.25}},
}
"""Few pictures: whole ones as one patch, and one layer of text, generalize better here than more layers and smaller patches."""


def main() -> None:
    """Prints the table of docs/images-and-texts.md."""
    parser = argparse.ArgumentParser(description="CLIP on emoji and their names, beside nearest neighbours.")
    parser.add_argument("--emoji", type=Path, help="the unpacked package with pictures")
    parser.add_argument("--names", type=Path, help="the unpacked package with names")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    report = measure(arguments.emoji or npm_package(EMOJI), arguments.names or npm_package(NAMES))
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def measure(emoji: Path, names: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = [write_pairs(emoji, names, language, folder) for language in LANGUAGES]
        data = {"train": [str(file) for file in files], "held_fraction": 0.1, "test_fraction": 0.1}
        recipe = TrainRecipe.model_validate({**RECIPE, "data": data})
        began = time.monotonic()
        outcome = launch(recipe, model_dir=None, tokenizer_dir=None, run_dir=folder / "run")
        seconds = time.monotonic() - began
        train, test = (side(folder / "run" / "data", name) for name in ("train", "test"))
        looks = whole_pictures(folder / "img")
        report: dict[str, Any] = {"cpu": cpu(), "seconds": round(seconds, 1), "pairs": len(train[0])}
        report["chosen_on"] = {key: value for key, value in outcome.metrics.items() if "recall" in key}
        for language in LANGUAGES:
            known, asked = (of_language(each, language) for each in (train, test))
            features = embedded(outcome.directory, *asked)
            report[language] = {
                "asked": len(asked[0]),
                "clip": recalls(features[0] @ features[1].T),
                "neighbours": recalls(neighbours(as_drawn(known, looks), as_drawn(asked, looks))),
            }
        return report


Side = tuple[list[dict[str, str]], NDArray[np.uint8]]


def write_pairs(emoji: Path, names: Path, language: str, folder: Path) -> Path:
    """One file of records in ``folder``, the pictures beside it."""
    said = {
        each["hexcode"]: each["label"] for each in json.loads((names / language / "data.json").read_text())
    }
    (folder / "img").mkdir(exist_ok=True)
    lines: list[str] = []
    for each in json.loads((emoji / "emoji.json").read_text()):
        name = said.get(each["unified"]) or said.get(each["unified"].replace("-FE0F", ""))
        if not name or not each["has_img_twitter"]:
            continue
        content = (emoji / "img" / "twitter" / "64" / each["image"]).read_bytes()
        (folder / "img" / each["image"]).write_bytes(content)
        lines.append(json.dumps({"image": f"img/{each['image']}", "text": name}, ensure_ascii=False) + "\n")
    file = folder / f"{language}.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    return file


def side(data: Path, name: str) -> Side:
    store: TokenStore = open_store(data / name)
    assert store.images is not None
    return [json.loads(line) for line in (data / f"{name}.jsonl").open()], np.array(store.images)


def whole_pictures(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """All 64 pixels of each side, which the neighbours see whatever the model does, by the hash that records name."""
    contents = [file.read_bytes() for file in folder.iterdir()]
    return {hashlib.sha256(one).hexdigest(): pixels(one, 64) for one in contents}


def as_drawn(given: Side, looks: dict[str, NDArray[np.uint8]]) -> Side:
    return given[0], np.stack([looks[each["image"]] for each in given[0]])


def of_language(given: Side, language: str) -> Side:
    records, images = given
    places = [at for at, each in enumerate(records) if each["source"].startswith(f"{language}.")]
    return [records[at] for at in places], images[places]


def embedded(
    model_dir: Path, records: list[dict[str, str]], images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By transformers alone, from what was registered."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from train.objectives.contrastive import pixel_values, unit

    model = CLIPModel.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = tokenizer(
        [each["text"] for each in records], padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        shown = unit(model.get_image_features(pixel_values(torch.from_numpy(images))).pooler_output)
        said = unit(model.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output)
    return shown.numpy(), said.numpy()


def neighbours(known: Side, asked: Side) -> NDArray[np.float32]:
    """How near each picture and each name are, float32 (pictures, names): the mean likeness of the name to those of the
    pictures most like it, and of the picture to those of the names most like it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    known_texts = letters.fit_transform([each["text"] for each in known[0]])
    asked_texts = letters.transform([each["text"] for each in asked[0]])
    by_text = np.asarray((asked_texts @ known_texts.T).todense(), dtype=np.float32)  # (asked, known)
    by_pixel = _small(asked[1]) @ _small(known[1]).T  # (asked, known)
    through_pictures = _nearest(by_pixel) @ by_text.T  # (pictures, names)
    through_names = _nearest(by_text) @ by_pixel.T  # (names, pictures)
    return through_pictures + through_names.T


def _small(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means of 4 by 4 pixels without what all have in common, of length 1; float32 (n, 768)."""
    blocks = (
        images.reshape(len(images), 16, 4, 16, 4, 3).mean((2, 4), dtype=np.float32).reshape(len(images), -1)
    )
    away = blocks - blocks.mean(1, keepdims=True)
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)


def _nearest(likeness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of the nearest ones: the likeness where it is among the largest, 0 elsewhere."""
    least = np.sort(likeness, axis=1)[:, -NEIGHBOURS][:, None]
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
    print(f"{report['pairs']} pairs, {report['seconds']:.0f} s on {report['cpu']}")
    print("| names | asked | by | picture to name: recall@1 | @5 | name to picture: recall@1 | @5 |")
    print("|---|---|---|---|---|---|---|")
    for language, title in LANGUAGES.items():
        row = report[language]
        rows = {"clip": "CLIP", "neighbours": "nearest neighbours"}
        for key, by in rows.items():
            figures = " | ".join(f"{value:.3f}" for value in row[key].values())
            print(f"| {title} | {row['asked']} | {by} | {figures} |")
        chance = f"{1 / row['asked']:.3f} | {5 / row['asked']:.3f}"
        print(f"| {title} | {row['asked']} | chance | {chance} | {chance} |")


if __name__ == "__main__":
    main()
