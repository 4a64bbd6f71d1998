"""Runs of labelled data in this process, as a command starts them, on an encoder that has learnt nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from train.launch import open_run
from train.recipe import TrainRecipe, validate_recipe
from train.run import train as train_run
from train.runs.identity import contents_of
from train.runs.prepare import prepare_run

SPORT, BUSINESS, COMMON = (
    ["race", "horse", "goal", "team"],
    ["market", "bank", "price", "share"],
    ["the", "of", "and"],
)
ONE, TWO = ["one", "two", "six", "ten"], ["north", "south", "east", "west"]
PEOPLE, PLACES = ["Ada", "Bob", "Eve", "Kim"], ["Paris", "Oslo", "Rome", "Lima"]


def recipe(objective: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "objective": objective,
        "data": {"train": [str(folder / f"{objective}.jsonl")], "held_fraction": 0.2},
        "sequence_tokens": 32,
        "batch_tokens": 512,
        "micro_batch": 8,
        "steps": 40,
        "optimizer": {"lr": 2e-3},
        "dtype": "float32",
        "threads": 1,
        "checkpoint": {"every_s": 1e9},
    } | changes


def run(
    base: Path | None, said: dict[str, Any], run_dir: Path, stop_after: int = 0, tokenizer: Path | None = None
) -> dict[str, Any]:
    """The outcome of the run; stopped after so many steps where asked, as if by a signal."""
    torch.set_num_threads(1)
    begin(base, said, run_dir, tokenizer)
    steps: list[int] = []
    train_run(run_dir, lambda report: steps.append(report.step), lambda: 0 < stop_after <= len(steps) + 1)
    return json.loads((run_dir / "outcome.json").read_bytes())


def begin(base: Path | None, said: dict[str, Any], run_dir: Path, tokenizer: Path | None = None) -> None:
    """Writes run.json, and prepares the data."""
    wanted = validate_recipe(TrainRecipe, said)
    run_dir.mkdir(exist_ok=True)
    open_run(wanted, base, tokenizer, run_dir, contents_of(wanted))
    prepare_run({"run_dir": str(run_dir), "nice": 0}, lambda *_: None)


def rank(run_dir: Path) -> None:
    """One process of several, of a run that was begun."""
    train_run(run_dir, lambda report: None, lambda: False)


def losses(run_dir: Path) -> list[float]:
    """Loss and gradient's norm of each step."""
    steps = [json.loads(line) for line in (run_dir / "steps.jsonl").open()]
    return [number for each in steps for number in (each["loss"], each["grad_norm"])]


def write_data(folder: Path) -> None:
    """A file for each objective, of rules that two layers learn in seconds."""
    drawn = random.Random(0)

    def words(kind: list[str]) -> str:
        return " ".join(drawn.choice(kind + COMMON) for _ in range(drawn.randint(4, 14)))

    def sentence() -> tuple[list[str], list[str]]:
        first, place = drawn.choice(PEOPLE), drawn.choice(PLACES)
        said = [drawn.choice(COMMON), first, drawn.choice(["went", "ran"]), "to", place, "city"]
        return said, ["O", "B-PER", "O", "O", "B-LOC", "I-LOC"]

    classes = [
        {"text": f"{words(kind)} {n}", "label": label}
        for n in range(100)
        for kind, label in ((SPORT, "sport"), (BUSINESS, "business"))
    ]
    tagged = [
        {"tokens": [*said, str(n)], "tags": [*tags, "O"]} for n in range(150) for said, tags in (sentence(),)
    ]
    asked: list[dict[str, Any]] = []
    for n in range(150):
        who, where = drawn.choice(PEOPLE), drawn.choice(PLACES)
        context = f"{who} lives in {where} number {n}"
        wants_place = drawn.random() < 0.5
        lacks = drawn.random() < 0.2
        answer = where if wants_place else who
        question = "how much ?" if lacks else ("which place ?" if wants_place else "who ?")
        answers = {"text": [], "answer_start": []}
        if not lacks:
            answers = {"text": [answer], "answer_start": [context.index(answer)]}
        asked.append({"context": context, "question": question, "answers": answers})
    scored = [
        {"query": f"{drawn.choice(one)} {n}", "document": words(other), "label": int(one is other)}
        for n in range(80)
        for one in (SPORT, BUSINESS)
        for other in (SPORT, BUSINESS)
    ]
    pairs = [
        {"anchor": f"{sport} {place} {firm}", "positive": f"{ONE[a]} {PEOPLE[b]} {TWO[c]}"}
        for a, sport in enumerate(SPORT)
        for b, place in enumerate(PLACES)
        for c, firm in enumerate(BUSINESS)
    ]
    for n, pair in enumerate(pairs):
        if n % 2:
            pair["negative"] = pairs[n - 1]["positive"]
    for name, records in (
        ("classification", classes),
        ("token-classification", tagged),
        ("question-answering", asked),
        ("pair-scoring", scored),
        ("embedding", pairs),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
