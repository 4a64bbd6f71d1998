"""Runs on mixtures: prepared once, told in numbers, stopped and gone on with to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.bundles.bundle import file_entry
from everlearn.errors import ConfigError, InvalidInput
from tests.support.tiny_encoders import write_masked_lm
from tests.train.objectives import labelled_runs
from train.data.prepare import prepare, read_card
from train.data.store import open_store
from train.errors import Stopped
from train.recipe import TrainRecipe, deciding, read_recipe, recipe_diff
from train.run import train
from train.runs.identity import contents_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few texts of numbers, many of letters."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, count in (("numbers", 12), ("letters", 90)):
        words = (
            [str(n) for n in range(100, 150)] if name == "numbers" else [chr(97 + n) * 3 for n in range(26)]
        )
        drawn = np.random.default_rng(count)
        texts = [" ".join(drawn.choice(words, 40)) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def recipe(files: Path, **changes: Any) -> dict[str, Any]:
    mixture = {
        "numbers": {"train": [str(files / "numbers.jsonl")], "weight": 1},
        "letters": {"train": [str(files / "letters.jsonl")], "weight": 3},
    }
    return {
        "data": {
            "mixture": mixture,
            "curriculum": [{"from_step": 6, "weights": {"numbers": 1, "letters": 0}}],
        },
        "sequence_tokens": 64,
        "batch_tokens": 512,
        "micro_batch": 2,
        "steps": 10,
        "dtype": "float32",
        "threads": 1,
        "checkpoint": {"every_s": 1e9},
    } | changes


def test_a_run_tells_what_it_will_see_and_saw_and_goes_on_to_the_bit(
    base: Path, files: Path, tmp_path: Path
) -> None:
    said, told = recipe(files), list[str]()
    labelled_runs.begin(base, said, tmp_path / "whole")
    train(tmp_path / "whole", lambda report: None, lambda: False, told.append)
    outcome = json.loads((tmp_path / "whole" / "outcome.json").read_bytes())
    mixture, steps = (
        outcome["metrics"]["mixture"],
        [json.loads(line) for line in (tmp_path / "whole" / "steps.jsonl").open()],
    )
    assert sum(each["tokens"] for each in mixture.values()) == outcome["metrics"]["tokens"]
    assert [sum(step["components"].values()) for step in steps] == [step["tokens"] for step in steps]
    letters = [step["components"]["letters"] for step in steps]
    assert letters[5] > letters[0] > 0 and len(set(letters[5:])) == 1, "the curriculum leaves letters out"
    assert mixture["numbers"]["epochs"] > 1 > mixture["letters"]["epochs"] > 0
    times = f"{mixture['numbers']['epochs']:.2f} times"
    assert f"numbers {times} (" in told[0] and f"({times})" in told[1]
    card = read_card(tmp_path / "whole" / "data")
    assert list(card.components) == ["numbers", "letters"]
    assert sum(each.tokens for each in card.components.values()) == card.train.tokens
    assert open_store(tmp_path / "whole" / "data" / "train").card.components == {
        name: each.examples for name, each in card.components.items()
    }
    with pytest.raises(Stopped):
        labelled_runs.run(base, said, tmp_path / "half", stop_after=7)
    labelled_runs.run(base, said, tmp_path / "half")
    half, whole = (
        file_entry(tmp_path / name / "model" / "model.safetensors").sha256 for name in ("half", "whole")
    )
    assert half == whole


def test_a_prepared_store_is_mixed_by_other_weights(base: Path, files: Path, tmp_path: Path) -> None:
    components = {name: [files / f"{name}.jsonl"] for name in ("letters", "numbers")}
    prepare(components, base, tmp_path / "prepared")
    plain = prepare([file for each in components.values() for file in each], base, tmp_path / "plain")
    store, other = (open_store(tmp_path / name / "train") for name in ("prepared", "plain"))
    assert np.array_equal(store.tokens, other.tokens) and other.card.components is None
    assert (
        "components" not in (tmp_path / "plain" / "train" / "card.json").read_text() and not plain.components
    )
    stores = {
        "store": str(tmp_path / "prepared" / "train"),
        "held_store": str(tmp_path / "prepared" / "held"),
    }
    told: list[str] = []
    said = recipe(
        files, data=stores | {"mixture": {"numbers": {"weight": 1}, "letters": {"weight": 1}}}, steps=2
    )
    labelled_runs.begin(base, said, tmp_path / "run")
    train(tmp_path / "run", lambda report: None, lambda: False, told.append)
    assert "numbers" in told[0] and "(56.2% of the rows)" in told[0], "9 of 16"
    said["data"] = stores | {"mixture": {"numbers": {}, "prose": {}}}
    labelled_runs.begin(base, said, tmp_path / "other")
    with pytest.raises(
        InvalidInput, match="names numbers, prose, and the store has the components letters, numbers"
    ):
        train(tmp_path / "other", lambda report: None, lambda: False)


def test_labelled_data_is_mixed_as_well(files: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    write_masked_lm(encoder)
    labelled_runs.write_data(tmp_path)
    lines = (tmp_path / "classification.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:30]))
    (tmp_path / "rest.jsonl").write_text("".join(lines[30:]))
    mixture = {name: {"train": [str(tmp_path / f"{name}.jsonl")]} for name in ("some", "rest")}
    said = labelled_runs.recipe(
        "classification", tmp_path, data={"mixture": mixture, "held_fraction": 0.2}, steps=3
    )
    outcome = labelled_runs.run(encoder, said, tmp_path / "run")
    found = outcome["metrics"]["mixture"]
    assert sum(each["tokens"] for each in found.values()) == outcome["metrics"]["tokens"]
    assert found["some"]["epochs"] > found["rest"]["epochs"] > 0


def test_what_a_mixture_is_decides_a_run_and_where_it_lies_does_not(files: Path, tmp_path: Path) -> None:
    said = TrainRecipe.model_validate(recipe(files)).model_dump(mode="json")
    moved = json.loads(json.dumps(said).replace(str(files), "/elsewhere"))
    assert not recipe_diff(said, moved)
    moved["data"]["mixture"]["letters"]["weight"] = 4.0
    assert recipe_diff(said, moved) == ["data.mixture.letters.weight: 3.0 → 4.0"]
    contents = contents_of(TrainRecipe.model_validate(said))
    assert [len(contents[f"data.mixture.{name}"]) for name in ("numbers", "letters")] == [1, 1]
    plain = TrainRecipe.model_validate({"data": {"train": ["a.txt"]}}).model_dump(mode="json")
    assert not [key for key in deciding(plain) if "mixture" in key or "curriculum" in key]


@pytest.mark.parametrize(
    "data, message",
    [
        (
            "mixture: {code: {train: a.txt, wieght: 2}}",
            "unknown recipe key 'data.mixture.code.wieght'.*weight",
        ),
        ("mixture: {code: {train: a.txt, weight: -1}}", "data.mixture.*greater than or equal to 0"),
        ("mixture: {a b: {train: a.txt}}", "data.mixture"),
        ("mixture: {}", "data.mixture"),
        ("mixture: {code: {train: a.txt}, prose: {}}", "mixture.prose has no files"),
        ("{train: b.txt, mixture: {code: {train: a.txt}}}", "give either train"),
        ("{store: b, mixture: {code: {train: a.txt}}}", "give either train"),
        ("{train: b.txt, mixture: {code: {}}}", "train has files, and mixture has none"),
        ("{train: b.txt, curriculum: [{from_step: 3, weights: {}}]}", "there is none"),
        ("mixture: {code: {train: a.txt, weight: 0}}", "all weights from step 0 on are 0"),
        ("mixture: {a: {train: a.txt, weight: 0}, b: {train: b.txt}}", "the weight of 'a' is 0 throughout"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_its_line(tmp_path: Path, data: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"base: tiny\ndata: {data}\n" if data.startswith("{") else f"base: tiny\ndata:\n  {data}\n"
    )
    with pytest.raises(ConfigError, match=rf"recipe\.yaml:\d: .*{message}"):
        read_recipe(file)


@pytest.mark.parametrize(
    "curriculum, message",
    [
        ([{"from_step": 3, "weights": {"code": 1}}], "lacks the weight of 'prose'"),
        ([{"from_step": 3, "weights": {"code": 1, "prose": 1, "cod": 1}}], "did you mean 'code'"),
        ([{"from_step": 0, "weights": {"code": 1, "prose": 1}}], "greater than or equal to 1"),
        (
            [{"from_step": n, "weights": {"code": 1, "prose": 1}} for n in (3, 3)],
            "not after the stage before",
        ),
        ([{"from_step": 3, "weights": {"code": 0, "prose": 0}}], "all weights from step 3 on are 0"),
    ],
)
def test_a_curriculum_must_be_clear(curriculum: list[dict[str, Any]], message: str) -> None:
    mixture = {"code": {"train": "a.txt"}, "prose": {"train": "b.txt"}}
    with pytest.raises(ValueError, match=message):
        TrainRecipe.model_validate({"data": {"mixture": mixture, "curriculum": curriculum}})


def test_a_stage_after_the_end_and_a_component_without_texts_are_told(
    base: Path, files: Path, tmp_path: Path
) -> None:
    labelled_runs.begin(base, recipe(files, steps=6), tmp_path / "short")
    with pytest.raises(InvalidInput, match="weights from step 6 on, and the run has 6 steps"):
        train(tmp_path / "short", lambda report: None, lambda: False)
    (tmp_path / "copy.jsonl").write_text((files / "letters.jsonl").read_text())
    components = {"letters": [files / "letters.jsonl"], "copy": [tmp_path / "copy.jsonl"]}
    with pytest.raises(InvalidInput, match=r"nothing of 'copy' is left to train on.*90 exact duplicates"):
        prepare(components, base, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
