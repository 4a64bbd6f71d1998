"""Harmful texts found by a classifier that this room has trained: here one of sport and business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from everlearn.errors import ConfigError, InvalidInput
from tests.support.tiny_encoders import write_masked_lm
from tests.train.objectives import labelled_runs
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.models.label_judge import LabelJudge
from train.recipe import TrainRecipe, deciding, read_recipe
from train.recipe_data import with_models
from train.runs.identity import contents_of


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    write_masked_lm(folder / "encoder")
    labelled_runs.write_data(folder)
    said = labelled_runs.recipe("classification", folder, steps=25)
    labelled_runs.run(folder / "encoder", said, folder / "run")
    return folder / "run" / "model"


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    sport, business = "the race of horse and team goal", "the market of bank and price share"
    some = [f"{sport if n % 3 else business} {n} {'and of ' * (n % 7)}" for n in range(40)]
    some.append(f"{business} " * 3000 + f"{sport} " * 40)  # in the last window alone
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return [text.strip() for text in some]


def options(guard: Path, **changes: Any) -> DataOptions:
    classifier = {"model": str(guard), "label": "sport"} | changes
    return DataOptions.model_validate({"harmful": {"classifier": classifier}, "near_duplicates": None})


def alone(guard: Path, text: str) -> float:
    """The probability of sport, of a text by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(guard)
    ids = AutoTokenizer.from_pretrained(guard)(text, return_tensors="pt")
    with torch.no_grad():
        return float(torch.softmax(model(**ids).logits, -1)[0, model.config.label2id["sport"]])


def kept(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for side in ("train", "held") for line in (out / f"{side}.jsonl").open()]
    return {line["text"].strip(): line for line in lines}


def test_what_the_classifier_finds_is_left_out_and_counted(
    guard: Path, texts: list[str], tmp_path: Path, tokenizer_dir: Path
) -> None:
    card = prepare([tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(guard))
    wanted = {text for text in texts[:-1] if alone(guard, text) < 0.5}
    assert set(kept(tmp_path / "out")) == wanted and 10 < len(wanted) < 20
    assert card.dropped == {"harmful_classifier": len(texts) - len(wanted)}
    shown = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").open()]
    assert [each["rule"] for each in shown] == ["harmful_classifier"] * 10
    assert shown[0]["source"] == "a.jsonl:2"


def test_marked_texts_are_kept_with_their_probability(
    guard: Path, texts: list[str], tmp_path: Path, tokenizer_dir: Path
) -> None:
    card = prepare([tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(guard, action="mark"))
    lines = kept(tmp_path / "out")
    assert len(lines) == len(texts) and not card.dropped
    marked = {text: line["harmful"] for text, line in lines.items() if "harmful" in line}
    assert card.marked == {"harmful_classifier": len(marked)} and texts[-1] in marked
    some = next(text for text in marked if text != texts[-1])
    assert marked[some] == pytest.approx(alone(guard, some), abs=1e-3)
    again = prepare(
        [tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "stricter", options(guard, threshold=1.0)
    )
    assert again.kept == len(texts)


def test_scores_do_not_depend_on_what_is_judged_beside(guard: Path, texts: list[str]) -> None:
    judge = LabelJudge(guard, "sport")
    together = judge.scores([*texts, "", "race"])
    for number in (0, 1, 40):
        assert judge.scores([texts[number]])[0] == pytest.approx(together[number], abs=1e-5)
    assert together[-2] == 0 and 0 < together[-1] < 1


def test_a_model_that_cannot_judge_is_refused(
    guard: Path, texts: list[str], tmp_path: Path, tokenizer_dir: Path
) -> None:
    with pytest.raises(InvalidInput, match="no label 'harm'; it has business, sport"):
        prepare([tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(guard, label="harm"))
    with pytest.raises(InvalidInput, match=r"has no label 'sport'; it has LABEL_0, LABEL_1|none"):
        prepare(
            [tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(guard.parents[1] / "encoder")
        )
    with pytest.raises(InvalidInput, match="is no folder of a model"):
        prepare([tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", options(tmp_path))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_the_model_decides_by_what_it_holds_and_may_be_a_registered_one(
    guard: Path, texts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "base: tiny\ndata:\n  train: a.jsonl\n  harmful: {classifier: {model: guard@2, label: sport}}\n"
    )
    recipe = read_recipe(file)
    asked: list[str] = []
    data = with_models(recipe.data, lambda name: asked.append(name) or guard)
    assert asked == ["guard@2"] and data.harm_classifier and data.harm_classifier.model == guard
    recipe = recipe.model_copy(update={"data": data})
    assert [len(sha256) for _, sha256 in contents_of(recipe)["data.harmful.classifier"]] == [64]
    said = deciding(recipe.model_dump(mode="json"))
    assert said["data.harmful.classifier.label"] == "sport" and "data.harmful.classifier.model" not in said
    again = TrainRecipe.model_validate(recipe.model_dump(mode="json"))
    assert again.data.harm_classifier == data.harm_classifier
    words = {"data": {"train": ["a"], "harmful": {"words": ["w.txt"]}}}
    before = TrainRecipe.model_validate(words).model_dump(mode="json")["data"]["harmful"]
    assert before == {"words": ["w.txt"], "max_share": 0.0}, "as before there was a classifier"
    file.write_text("base: tiny\ndata:\n  train: a.jsonl\n  harmful: {max_share: 0.1}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:4: .*needs words .*, or a classifier"):
        read_recipe(file)
