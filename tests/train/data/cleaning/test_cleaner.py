"""All ways of cleaning together, through prepare: what the card counts, what dropped.jsonl shows, three sides."""

import json
import random
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml

from everlearn.errors import InvalidInput, NotFound
from train.data.cleaning.cleaner import Cleaner
from train.data.options import FIRST_OPTIONS, DataOptions
from train.data.prepare import prepare
from train.data.store import open_store
from train.recipe import TrainRecipe

PROSE = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8")
GERMAN = (
    "Die Stadt liegt an einem großen Fluss, der im Sommer von vielen Menschen besucht wird. Am Abend sitzen sie "
    "gern am Ufer und sprechen über das Wetter."
)


def write(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def texts_of(out: Path, side: str) -> list[str]:
    return [json.loads(line)["text"] for line in (out / f"{side}.jsonl").open()]


def test_options_that_are_not_used_change_nothing_of_what_earlier_versions_prepared() -> None:
    assert DataOptions().deciding() == {
        "kind": "auto", "held_fraction": 0.05, "min_held": 0, "max_tokens": 2048, "min_chars": 16, "max_chars": 2_000_000,
        "max_repeated_lines": 0.5, "max_repeated_chars": 0.5, "near_duplicates": 0.8, "normalize": False, "strip": False,
        "min_examples": 1, "max_line_bytes": 2**20,
    }  # fmt: skip
    assert DataOptions(near_duplicates=None).deciding().keys() == FIRST_OPTIONS


def test_what_was_left_out_and_masked_is_counted_and_shown(tokenizer_dir: Path, tmp_path: Path) -> None:
    measured = PROSE[20_000:21_000]
    texts = [PROSE[at : at + 900] for at in range(0, 9000, 900)]
    texts[3] = "Ask jo@example.org. " + texts[3]
    file = write(tmp_path / "a.jsonl", [*texts, GERMAN, f"jo@example.org {measured}", "tiny", texts[0]])
    options = DataOptions.model_validate(
        {
            "held_fraction": 0,
            "languages": {"keep": "en"},
            "personal": True,
            "decontaminate": {"against": write(tmp_path / "eval.jsonl", [measured[100:600]])},
        }
    )
    card = prepare([file], tokenizer_dir, tmp_path / "out", options)
    assert card.dropped == {"exact_duplicates": 1, "in_evaluation_set": 1, "language": 1, "too_short": 1}
    assert card.masked == {"email": 1} and card.languages == {"en": 12, "de": 1}
    assert not any("jo@" in text for text in texts_of(tmp_path / "out", "train"))
    shown = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").open()]
    assert [(each["rule"], each["source"]) for each in shown] == [
        ("exact_duplicates", "a.jsonl:14"), ("in_evaluation_set", "a.jsonl:12"), ("language", "a.jsonl:11"), ("too_short", "a.jsonl:13"),
    ]  # fmt: skip
    assert shown[1]["text"].startswith("[EMAIL] ") and all(len(each["text"]) <= 300 for each in shown)
    assert any("masked: email 1" in line for line in card.told())


def test_ten_of_a_rule_are_shown(tokenizer_dir: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [PROSE[:500], *(f"{n}" for n in range(8))]) for name in "ab"]
    prepare(files, tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0))
    rules = [json.loads(line)["rule"] for line in (tmp_path / "out" / "dropped.jsonl").open()]
    assert rules.count("too_short") == 10 and rules.count("exact_duplicates") == 1


def test_evaluation_examples_are_found_in_any_writing_and_templates_are_not(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    template = "Read the following question with care and answer it in one word of your own choice: "
    questions = [
        f"{template} {word} is the colour of which animal in the old story"
        for word in ("red", "blue", "green", "black", "white")
    ]
    chinese = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
    short = "Nine words are enough to be found again here"
    evaluation = write(tmp_path / "eval.jsonl", [*questions, chinese, short, "too few words"])
    hidden = [
        f"{PROSE[:300]} RED -- is the colour, of which animal in the old story?",
        "古诗：春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
        f"They said: nine words are enough, to be found again HERE. {PROSE[300:600]}",
    ]
    innocent = [
        template + PROSE[4000:4400],
        "处处闻啼鸟是一句诗，很多人都知道。",
        "too few words " + PROSE[5000:5300],
    ]
    file = write(tmp_path / "a.jsonl", [*hidden[:1], *innocent, *hidden[1:]])
    options = DataOptions.model_validate({"held_fraction": 0, "decontaminate": {"against": [evaluation]}})
    card = prepare([file], tokenizer_dir, tmp_path / "out", options)
    assert card.dropped == {"in_evaluation_set": 2}, "'red' stands in a passage that five questions share"
    assert set(innocent) < set(texts_of(tmp_path / "out", "train"))


def test_held_files_are_evaluation_sets_too(tokenizer_dir: Path, tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [PROSE[:400]])
    file = write(tmp_path / "a.jsonl", [PROSE[9000:9800] + PROSE[100:300], PROSE[2000:3000]])
    options = DataOptions.model_validate({"decontaminate": True})
    card = prepare([file], tokenizer_dir, tmp_path / "out", options, held=[held])
    assert (card.train.documents, card.held.documents) == (1, 1) and card.dropped == {"in_evaluation_set": 1}


def test_another_evaluation_set_is_another_preparation(tokenizer_dir: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [PROSE[:400], PROSE[2000:3000]])
    cards = []
    for number in (0, 1):
        options = {
            "decontaminate": {"against": write(tmp_path / "eval.jsonl", [PROSE[9000 + number : 9400]])}
        }
        cards.append(
            prepare([file], tokenizer_dir, tmp_path / f"{number}", DataOptions.model_validate(options))
        )
    assert cards[0].inputs_sha256 != cards[1].inputs_sha256


@pytest.mark.parametrize("name", ["missing.jsonl", "table.xyz"])
def test_an_evaluation_set_that_cannot_be_read_is_one_error(
    tokenizer_dir: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "table.xyz").write_text("x")
    options = DataOptions.model_validate({"decontaminate": {"against": tmp_path / name}})
    with pytest.raises((InvalidInput, NotFound), match=name):
        prepare([write(tmp_path / "a.jsonl", [PROSE[:400]])], tokenizer_dir, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_three_sides_by_the_documents_hash(tokenizer_dir: Path, tmp_path: Path) -> None:
    texts = [f"Entry {n} of the list says {n * 7919 % 1009} and then {n * 104729 % 997}." for n in range(400)]
    file = write(tmp_path / "a.jsonl", texts)
    two = prepare([file], tokenizer_dir, tmp_path / "two", DataOptions(near_duplicates=None))
    three = prepare(
        [file], tokenizer_dir, tmp_path / "three", DataOptions(near_duplicates=None, test_fraction=0.05)
    )
    sides = {side: set(texts_of(tmp_path / "three", side)) for side in ("train", "held", "test")}
    assert sides["held"] == set(texts_of(tmp_path / "two", "held")), (
        "the test side takes nothing from the held side"
    )
    assert (
        sides["train"] | sides["test"] == set(texts_of(tmp_path / "two", "train"))
        and not sides["train"] & sides["test"]
    )
    assert three.test and 5 < three.test.documents == len(sides["test"]) < 45
    assert two.test is None and not (tmp_path / "two" / "test").exists()
    store = open_store(tmp_path / "three" / "test", verify=True)
    assert store.card.tokens == three.test.tokens and np.all([len(each) for each in store])


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        DataOptions(held_fraction=0.6, test_fraction=0.5)


def test_labelled_texts_are_masked_but_not_those_that_labels_point_into(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    records = [{"text": f"Mail {n} to jo{n}@example.org now, please", "label": "ab"[n % 2]} for n in range(9)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"kind": "classification", "personal": True, "test_fraction": 0.3, "near_duplicates": None}
    card = prepare([file], tokenizer_dir, tmp_path / "out", DataOptions.model_validate(options))
    assert card.masked == {"email": 9} and not card.dropped
    with pytest.raises(
        InvalidInput, match=r"data\.personal: the labels of question-answering stand at places"
    ):
        Cleaner(DataOptions.model_validate({"kind": "question-answering", "personal": True}))


def test_a_label_that_only_the_test_side_has_is_not_tested(tokenizer_dir: Path, tmp_path: Path) -> None:
    records = [{"text": f"The number {n} is a fine number", "label": "ab"[n % 2]} for n in range(60)]
    records += [{"text": f"The letter {n} is rare", "label": f"rare {n}"} for n in range(20)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = DataOptions(kind="classification", test_fraction=0.4, near_duplicates=None, min_chars=1)
    card = prepare([file], tokenizer_dir, tmp_path / "out", options)
    assert card.test and card.test.documents > 10
    tested = [json.loads(line)["label"] for line in (tmp_path / "out" / "test.jsonl").open()]
    assert set(tested) <= set(card.labels) and card.dropped["label_only_in_test"] == 22 - len(card.labels)
    assert (
        sum(each.train + each.held for each in card.labels.values())
        == card.train.documents + card.held.documents
    )
    assert card.read == card.kept + sum(card.dropped.values())


def test_the_page_on_cleaning_shows_options_that_exist() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    recipe = TrainRecipe.model_validate(yaml.safe_load(page.split("```yaml")[1].split("```")[0]))
    assert recipe.data.cleans and recipe.data.given_files()["quality.urls"] == (Path("hosts.txt"),)


def test_byte_order_marks_and_tools_in_a_text_make_no_other_examples(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "On the table."},
    ]
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n", encoding="utf-8-sig")
    other.write_text(json.dumps({"tools": json.dumps(tools), "messages": messages}) + "\n", encoding="utf-8")
    card = prepare([one, other], tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0))
    assert (card.kept, card.dropped) == (1, {"exact_duplicates": 1})


def test_templated_documents_on_other_topics_survive_deduplication(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    """A source of templated pages once lost nine tenths to near-duplicates."""
    rng = random.Random(0)
    head, foot = PROSE[:700], PROSE[900:1600]
    words = sorted(set(PROSE[20_000:60_000].split()))
    texts = [f"{head}\n\n{' '.join(rng.sample(words, 30))}\n\n{foot}" for _ in range(40)]
    file = write(tmp_path / "a.jsonl", [*texts, texts[0].replace(" the ", " a ", 1)])
    card = prepare([file], tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0))
    assert card.kept == 40 and card.dropped == {"near_duplicates": 1}
