"""Names found by a token classifier that this room has trained, and masked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.errors import InvalidInput
from tests.support.tiny_encoders import write_masked_lm
from tests.train.objectives import labelled_runs
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.models.span_finder import (
    SpanFinder,
    _joined,  # pyright: ignore[reportPrivateUsage]
    _places,  # pyright: ignore[reportPrivateUsage]
)
from train.recipe import TrainRecipe, deciding, read_recipe
from train.recipe_data import with_models
from train.runs.identity import contents_of

NAMES = ("Ada", "Bob", "Eve", "Kim")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows four names at any place of a text, and nothing else."""
    folder = tmp_path_factory.mktemp("reader")
    write_masked_lm(folder / "encoder")
    drawn = random.Random(0)
    others = [
        *[
            "the",
            "went",
            "ran",
            "to",
            "Oslo",
            "Rome",
            "Lima",
            "Paris",
            "city",
            "and",
            "example",
            "com",
            ".",
            ",",
            "@",
        ],
        *map(str, range(20)),
    ]
    records: list[dict[str, Any]] = []
    for _ in range(200):
        words = drawn.choices([*NAMES, *others], k=drawn.randint(4, 110))
        records.append({"tokens": words, "tags": ["B-PER" if word in NAMES else "O" for word in words]})
    (folder / "token-classification.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    said = labelled_runs.recipe(
        "token-classification",
        folder,
        sequence_tokens=128,
        batch_tokens=2048,
        steps=90,
        optimizer={"lr": 4e-3},
    )
    labelled_runs.run(folder / "encoder", said, folder / "run")
    return folder / "run" / "model"


def options(reader: Path, **personal: Any) -> DataOptions:
    said = {"names": {"model": str(reader)}} | personal
    return DataOptions.model_validate({"personal": said, "near_duplicates": None, "min_chars": 1})


def prepared(records: list[dict[str, Any]], chosen: DataOptions, folder: Path, tokenizer_dir: Path) -> Any:
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    card = prepare([folder / "a.jsonl"], tokenizer_dir, folder / "out", chosen)
    lines = [
        json.loads(line) for side in ("train", "held") for line in (folder / "out" / f"{side}.jsonl").open()
    ]
    return card, sorted(lines, key=lambda line: int(str(line["source"]).rsplit(":", 1)[1]))


def test_names_are_masked_in_texts_of_any_length(reader: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    sentence = "the {} went to Oslo city 4 . "
    long = "".join(sentence.format(name) for name in ["Ada", "Eve"] * 60)
    records = [{"text": f"the {name} ran to Rome city {n}"} for n, name in enumerate(["Bob", "Kim"] * 10)]
    card, lines = prepared([*records, {"text": long}], options(reader), tmp_path / "one", tokenizer_dir)
    texts = [line["text"].strip() for line in lines]
    assert texts[:2] == ["the [NAME] ran to Rome city 0", "the [NAME] ran to Rome city 1"]
    assert texts[-1] == (sentence.format("[NAME]") * 120).strip()
    assert card.masked == {"name": 140}
    assert any("name 140" in line for line in card.told())


def test_the_same_name_has_the_same_number_and_nothing_is_masked_twice(
    reader: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    said = [
        {"role": "user", "content": "the Ada went to Oslo city 1 . and Bob ran to Rome city 2"},
        {"role": "assistant", "content": "the Bob went to Lima city 3 , the ada@example.com"},
    ]
    records = [
        {"messages": [{**each, "content": f"{each['content']} {n}"} for each in said]} for n in range(8)
    ]
    card, lines = prepared(records, options(reader, consistent=True), tmp_path / "chats", tokenizer_dir)
    first, second = (message["content"] for message in lines[0]["messages"])
    assert first == "the [NAME_1] went to Oslo city 1 . and [NAME_2] ran to Rome city 2 0"
    assert second == "the [NAME_2] went to Lima city 3 , the [EMAIL_1] 0"
    assert card.masked == {"name": 24, "email": 8}


def test_what_is_shown_of_texts_left_out_has_no_names(
    reader: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    kept = [{"text": f"the {name} ran to Rome city {n}"} for n, name in enumerate(["Bob", "Kim"] * 10)]
    chosen = options(reader).model_copy(update={"max_chars": 60})
    card, _ = prepared(
        [*kept, {"text": "the Eve went to Paris city 1 " * 9}], chosen, tmp_path / "x", tokenizer_dir
    )
    assert card.dropped == {"too_long": 1}
    shown = (tmp_path / "x" / "out" / "dropped.jsonl").read_text()
    assert "[NAME]" in shown and "Eve" not in shown


def test_spans_are_whole_words_and_do_not_depend_on_what_is_read_beside(reader: Path) -> None:
    finder = SpanFinder(reader, ["PER"], 0.5)
    text = "the Ada went to Oslo city 4"
    [alone] = finder.spans([text])
    assert [text[start:end] for start, end in alone] == ["Ada"]
    together = finder.spans(["", text, f"{text} . " * 300])
    assert together[0] == [] and together[1] == alone and len(together[2]) == 300
    assert SpanFinder(reader, ["PER"], 1.0).spans([text]) == [[]]


@pytest.mark.parametrize(
    ("text", "tokens", "names"),
    [
        ("O'Brien ran to Jean-Luc's", [(0, 1), (15, 19)], ["O'Brien", "Jean-Luc's"]),
        ("\U00020bb7野 went", [(0, 1), (0, 1), (0, 1), (1, 2)], ["\U00020bb7野"]),
        ("कुमार गया", [(0, 1)], ["कुमार"]),
        ("Rene\u0301e went", [(0, 4)], ["Rene\u0301e"]),
        (
            "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627 \u0622",
            [(0, 3)],
            ["\u0639\u0644\u06cc\u200c\u0631\u0636\u0627"],
        ),
        ("ฉันพบสมชายที่ตลาด", [(5, 10)], ["สมชาย"]),
        ("和小明去学校", [(1, 2), (2, 3)], ["小明"]),
        ("met Ada , Bob", [(4, 7), (10, 13)], ["Ada", "Bob"]),
        ("Ada 🙂 Bob", [(0, 3), (6, 9)], ["Ada", "Bob"]),
    ],
)
def test_a_name_is_masked_whole_in_any_writing(
    text: str, tokens: list[tuple[int, int]], names: list[str]
) -> None:
    found = np.array([(True, at == 0) for at in range(len(tokens))])
    spans = list(_joined(text, _places(text, tokens, found)))
    assert [text[start:end] for start, end in spans] == names


def test_a_model_that_finds_no_names_is_refused(reader: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no label 'ORG'; it has (O, PER|PER, O)"):
        SpanFinder(reader, ["ORG"], 0.5)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the Ada went"}) + "\n")
    with pytest.raises(InvalidInput, match="is no folder of a model"):
        prepare([tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(tmp_path))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_the_model_decides_by_what_it_holds_and_may_be_a_registered_one(reader: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: tiny\ndata:\n  train: a.jsonl\n  personal: {names: {model: reader@2}}\n")
    (tmp_path / "a.jsonl").write_text("{}\n")
    recipe = read_recipe(file)
    asked: list[str] = []
    data = with_models(recipe.data, lambda name: asked.append(name) or reader)
    assert asked == ["reader@2"] and data.name_finder and data.name_finder.model == reader
    recipe = recipe.model_copy(update={"data": data})
    assert [len(sha256) for _, sha256 in contents_of(recipe)["data.personal.names"]] == [64]
    said = deciding(recipe.model_dump(mode="json"))
    assert said["data.personal.names.labels"] == ["PER", "PERSON"]
    assert "data.personal.names.model" not in said
    assert TrainRecipe.model_validate(recipe.model_dump(mode="json")).data.name_finder == data.name_finder
    before = TrainRecipe.model_validate({"base": "b", "data": {"train": ["a"], "personal": True}})
    assert "names" not in before.model_dump(mode="json")["data"]["personal"], "as before there were any"
