"""From labelled files to stores: what is read, what is refused, and what each column says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from everlearn.errors import InvalidInput
from train.data.card import DataCard
from train.data.labelled.encode import CONTINUES, IGNORED, NO_ANSWER
from train.data.labelled.example import Labelled
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.read import read_examples
from train.data.store import TokenStore, open_store
from train.data.tokenize import Tokens

SPORTS = [
    {"text": f"The {animal} won the race number {n}.", "label": label}
    for n in range(12)
    for animal, label in (("horse", "sport"), ("market", "business"))
]
CONTEXT = "The old keyboard was made in Kyoto in 1971, and repaired by Ada in the year after that."


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def prepared(
    tokenizer: Path, folder: Path, records: list[dict[str, Any]], kind: str, **options: Any
) -> tuple[DataCard, TokenStore, TokenStore]:
    held = options.pop("held", None)
    wanted = DataOptions.model_validate({"kind": kind, "max_tokens": 64, **options})
    given = [write(folder / "held.jsonl", held)] if held else []
    card = prepare([write(folder / "data.jsonl", records)], tokenizer, folder / "out", wanted, held=given)
    return card, open_store(folder / "out" / "train", verify=True), open_store(folder / "out" / "held")


def pieces(tokenizer: Path, ids: np.ndarray) -> list[str]:
    shown = Tokens(tokenizer).with_marks()
    return [shown.id_to_token(int(each)) for each in ids]


def test_records_of_every_layout_are_the_same_examples(tmp_path: Path) -> None:
    records = [{"text": 'A "quoted", text', "label": "a b"}, {"text": "two\nlines", "label": "c"}]
    write(tmp_path / "a.jsonl", records)
    (tmp_path / "b.json").write_text(json.dumps(records))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": records}))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "Label", "text"])
        table.writeheader()
        table.writerows(
            {"id": n, "Label": each["label"], "text": each["text"]} for n, each in enumerate(records)
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "e.parquet")
    expected = [Labelled("classification", record) for record in records]
    for name in ("a.jsonl", "b.json", "c.json", "d.csv", "e.parquet"):
        assert list(read_examples(tmp_path / name, kind="classification")) == expected, name


def test_lists_in_cells_of_a_table_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('tokens,ner_tags\n"[""Ada"", ""sleeps""]","[""B-PER"", ""O""]"\n')
    [example] = read_examples(tmp_path / "a.csv", kind="token-classification")
    assert example.record == {"tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("classification", {"text": "x"}, 'a.jsonl:1: has "text". Right would be "text" and "label"'),
        ("classification", {"text": "x", "label": None}, 'a.jsonl:1: "label" is empty'),
        ("classification", {"text": "x", "label": 0.5}, 'a.jsonl:1: "label" is a number, 0.5'),
        ("classification", {"text": "x", "label": ["a", "b"]}, "one per text"),
        ("classification", {"text": " ", "label": "a"}, 'a.jsonl:1: "text" is empty'),
        ("classification", {"text": 7, "label": "a"}, 'a.jsonl:1: "text" is a number, not text'),
        ("classification", {"text": "x", "sentence": "y", "label": "a"}, 'has both "text" and "sentence"'),
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ("token-classification", {"tokens": ["a"], "ner_tags": [3]}, '"ner_tags"[0] is the number 3. Write the tags'),
        ("token-classification", {"tokens": "Ada", "tags": ["O"]}, '"tokens" is text that is not JSON'),
        ("question-answering", {"context": "abc", "question": "q", "answers": {"text": ["c"], "answer_start": [0]}},
         "answer_start[0] is 0, and the context has 'a' there, not 'c'. It begins at 2; places count characters"),
        ("question-answering", {"context": "abc", "question": "q", "answers": ["c"]}, "Right would be {\"text\": [\"a dog\"]"),
        ("pair-scoring", {"query": "q", "document": "d", "label": 4.5}, "goes from 0 (unrelated) to 1: divide all"),
        ("pair-scoring", {"query": "q", "document": "d", "label": "good"}, "\"label\" is 'good'. A score is a number"),
        ("embedding", {"anchor": "a", "positive": "b", "negative": "b"}, 'the same "positive" and "negative"'),
        ("embedding", {"anchor": "a"}, 'Right would be "anchor" and "positive"'),
        ("seq2seq", {"translation": {"en": "a", "es": "b"}}, 'has "translation" (en, es). Say which way'),
    ],
)  # fmt: skip
def test_a_wrong_record_is_refused_by_file_and_line(
    kind: Any, record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as error:
        list(read_examples(write(tmp_path / "a.jsonl", [record]), kind=kind))
    assert error.value.message.startswith("a.jsonl:1: ") and message in error.value.message


def test_a_table_without_the_columns_and_prose_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,class\nx,y\n")
    (tmp_path / "a.txt").write_text("Some prose.")
    for name, message in (("a.csv", 'a.csv:1: has the columns "text", "class"'), ("a.txt", "is plain text")):
        with pytest.raises(InvalidInput, match='Right would be "text" and "label"') as error:
            list(read_examples(tmp_path / name, kind="classification"))
        assert message in error.value.message


def test_translations_are_read_the_way_that_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"id": 1, "translation": {"en": "one", "es": "uno"}}])
    [there] = read_examples(file, kind="seq2seq", translation="en-es")
    [back] = read_examples(file, kind="seq2seq", translation="es-en")
    assert there.record == {"source": "one", "target": "uno"} and there.ignored == ("id",)
    assert back.record == {"source": "uno", "target": "one"}
    with pytest.raises(InvalidInput, match=r'"translation" has no text in "fr" \(it has en, es\)'):
        list(read_examples(file, kind="seq2seq", translation="en-fr"))


def test_labels_are_numbered_by_name_and_counted_on_both_sides(wordpiece: Path, tmp_path: Path) -> None:
    card, train, held = prepared(wordpiece, tmp_path, SPORTS, "classification", held_fraction=0.25)
    assert train.card.labels == held.card.labels == ("business", "sport") == tuple(card.labels)
    for number, name in enumerate(("business", "sport")):
        counted = card.labels[name]
        assert counted.train + counted.held == 12 and counted.held > 0
        for store, count in ((train, counted.train), (held, counted.held)):
            assert sum(int(example.labels[0]) == number for example in store) == count  # type: ignore[index]
    lines = {
        json.loads(line)["text"]: json.loads(line)["label"]
        for line in (tmp_path / "out" / "train.jsonl").open()
    }
    assert lines.items() <= {each["text"]: each["label"] for each in SPORTS}.items()
    example = train[0]
    assert example.labels is not None and example.mask.tolist() == (example.labels != IGNORED).tolist()
    assert example.mask.sum() == 1 and train.card.targets == len(train)
    assert any("2 labels: business 12, sport 12" in line for line in card.told())


def test_whole_numbers_are_labels_in_their_order(wordpiece: Path, tmp_path: Path) -> None:
    records = [{"text": f"text number {n}", "label": n % 12} for n in range(48)]
    _card, train, _ = prepared(wordpiece, tmp_path, records, "classification")
    assert train.card.labels == tuple(map(str, range(12)))


def test_both_sides_have_every_label_of_two_texts_or_the_card_says_so(
    wordpiece: Path, tmp_path: Path
) -> None:
    rare = [{"text": "Once it snowed.", "label": "weather"}]
    twice = [{"text": "A cake was baked.", "label": "food"}, {"text": "Soup was cooked.", "label": "food"}]
    card, *_ = prepared(wordpiece, tmp_path, [*SPORTS, *rare, *twice], "classification", held_fraction=0.1)
    assert (card.labels["food"].train, card.labels["food"].held) == (1, 1)
    assert (card.labels["weather"].train, card.labels["weather"].held) == (1, 0)
    assert card.notes == ["the held-out side has no example of weather: its figures say nothing of it"]


def test_a_label_that_is_only_measured_with_is_refused_by_name(wordpiece: Path, tmp_path: Path) -> None:
    held = [{"text": "Another race was won.", "label": "sprot"}]
    with pytest.raises(InvalidInput) as error:
        prepared(wordpiece, tmp_path, SPORTS, "classification", held=held)
    assert error.value.message == (
        'held.jsonl:1: has the label "sprot", which no example to learn from has. Those have business, sport; '
        "did you mean 'sport'?"
    )
    assert not (tmp_path / "out").exists()


def test_one_label_in_all_is_refused(wordpiece: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match='every example to learn from has the label "sport"'):
        prepared(wordpiece, tmp_path, SPORTS[::2], "classification")


def test_equal_texts_with_other_labels_are_told_and_equal_examples_dropped(
    wordpiece: Path, tmp_path: Path
) -> None:
    other = {**SPORTS[0], "label": "business"}
    card, *_ = prepared(wordpiece, tmp_path, [*SPORTS, other, SPORTS[1]], "classification")
    assert card.dropped == {"exact_duplicates": 1} and card.kept == 25
    assert card.notes == [
        '1 text has other labels elsewhere, such as "sport" in data.jsonl:1 and "business" in data.jsonl:25: all are kept'
    ]


def test_near_duplicates_of_another_label_are_kept(wordpiece: Path, tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(40))
    records = [*SPORTS, *({"text": f"{long} {n}", "label": label} for n, label in enumerate(("sport", "sport", "business")))]  # fmt: skip
    card, *_ = prepared(wordpiece, tmp_path, records, "classification", max_tokens=128)
    assert card.dropped == {"near_duplicates": 1}


def test_the_first_piece_of_each_word_has_its_tag(wordpiece: Path, tmp_path: Path) -> None:
    words, tags = ["Xylophonist", "Ada", "don't", "[SEP]", "1971"], ["B-JOB", "B-PER", "O", "O", "B-DATE"]
    records = [{"tokens": words, "tags": tags}, {"tokens": ["Ada", "rests"], "tags": ["B-PER", "O"]}]
    _, train, _ = prepared(wordpiece, tmp_path, records, "token-classification", held_fraction=0)
    example = max(train, key=len)
    assert train.card.labels and example.labels is not None
    shown = pieces(wordpiece, example.ids)
    labelled = {
        place: train.card.labels[label] for place, label in enumerate(example.labels.tolist()) if label >= 0
    }
    assert list(labelled.values()) == tags
    assert not any(shown[place].startswith("##") for place in labelled)
    assert shown[0] == "[CLS]" and shown[-1] == "[SEP]" and shown.count("[SEP]") == 1  # the word is no mark
    joined = [shown[place] for place in labelled]
    assert joined[0][0] == "x" and joined[1][0] == "a" and joined[2][0] == "d" and joined[3] == "["


def test_long_sentences_are_several_windows_and_no_word_has_two_tags(wordpiece: Path, tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(60)]
    records = [{"tokens": words, "tags": ["B-X" if n % 7 == 0 else "O" for n in range(60)]}] * 1
    records += [{"tokens": ["x" * 400], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    _card, train, _ = prepared(wordpiece, tmp_path, records, "token-classification", held_fraction=0, max_tokens=32)  # fmt: skip
    assert all(len(example) <= 32 for example in train) and len(train) > 4
    assert train.card.targets == 60 + 1 + 2
    assert train.card.labels == ("B-X", "O")


def test_answers_are_marked_where_they_are_and_missing_ones_at_the_first_token(
    wordpiece: Path, tmp_path: Path
) -> None:
    answered = {
        "context": CONTEXT,
        "question": "Where was it made?",
        "answers": {"text": ["Kyoto", " in Kyoto"], "answer_start": [29, 25]},
    }
    missing = {"context": CONTEXT, "question": "Who sold it?", "answers": {"text": [], "answer_start": []}}
    card, train, _ = prepared(wordpiece, tmp_path, [answered, missing], "question-answering", held_fraction=0)
    one, none = train
    assert one.labels is not None and none.labels is not None and one.segments is not None
    shown = pieces(wordpiece, one.ids)
    for k, text in enumerate(("kyoto", "inkyoto")):
        start = int(np.flatnonzero((one.labels > 0) & (one.labels & (1 << 2 * k) > 0))[0])
        end = int(np.flatnonzero((one.labels > 0) & (one.labels & (1 << 2 * k + 1) > 0))[0])
        assert "".join(shown[start : end + 1]).replace("##", "") == text
        assert one.segments[start] == 1
    assert one.labels[0] == 0 and none.labels[0] == NO_ANSWER
    assert {name: each.train for name, each in card.labels.items()} == {"answerable": 1, "unanswerable": 1}


def test_long_contexts_are_windows_that_overlap_by_the_stride(wordpiece: Path, tmp_path: Path) -> None:
    long = " ".join(f"In {1900 + n} there was rain." for n in range(40))
    start = long.index("1930")
    record = {
        "context": long,
        "question": "When?",
        "answers": {"text": ["1930"], "answer_start": [start]},
    }
    endless = {**record, "question": "When was it, " * 40}
    card, train, _ = prepared(
        wordpiece,
        tmp_path,
        [record, endless],
        "question-answering",
        held_fraction=0,
        max_tokens=64,
        stride=20,
    )
    assert card.dropped == {"no_target_within_max_tokens": 1}
    first, *others = train
    assert first.labels is not None and not first.labels[0] & CONTINUES
    assert others and all(each.labels is not None and each.labels[0] & CONTINUES for each in others)
    question = int(np.flatnonzero(first.segments == 1)[0])  # type: ignore[arg-type]
    for before, after in zip(train, list(train)[1:-1], strict=False):
        assert np.array_equal(before.ids[-21:-1], after.ids[question : question + 20])
    with_answer = [each for each in train if (each.labels[1:] > 0).any()]  # type: ignore[index]
    assert with_answer and all(each.labels[0] & NO_ANSWER == 0 for each in with_answer)  # type: ignore[index]


def test_questions_on_one_context_are_on_one_side(wordpiece: Path, tmp_path: Path) -> None:
    records = [
        {
            "context": f"{CONTEXT} Chapter {chapter}.",
            "question": f"What of {n}?",
            "answers": {"text": ["Ada"], "answer_start": [60]},
        }
        for chapter in range(30)
        for n in range(5)
    ]
    prepared(wordpiece, tmp_path, records, "question-answering", held_fraction=0.3)
    train, held = (
        {json.loads(line)["context"] for line in (tmp_path / "out" / f"{side}.jsonl").open()}
        for side in ("train", "held")
    )
    assert train and held and not train & held


def test_scores_keep_their_value_and_pairs_their_order(wordpiece: Path, tmp_path: Path) -> None:
    records = [{"sentence1": "first words", "sentence2": "second words", "score": 0.3}, {"query": "q", "document": "d", "label": 1}]  # fmt: skip
    _, train, _ = prepared(wordpiece, tmp_path, records, "pair-scoring", held_fraction=0)
    one, two = train
    assert one.labels is not None and two.labels is not None and one.segments is not None
    assert one.labels[:1].view(np.float32)[0] == np.float32(0.3)
    assert two.labels[:1].view(np.float32)[0] == 1
    shown = pieces(wordpiece, one.ids)
    second = int(np.flatnonzero(one.segments == 1)[0])
    assert shown[second - 1] == "[SEP]" and shown[0] == "[CLS]" and shown[-1] == "[SEP]"


def test_an_anchor_its_positive_and_its_negative_are_three_texts(wordpiece: Path, tmp_path: Path) -> None:
    records = [
        {"anchor": "rain", "positive": "wet weather", "negative": "dry " * 200},
        {"query": "sun", "positive": "dry"},
    ]
    card, train, _ = prepared(wordpiece, tmp_path, records, "embedding", held_fraction=0, max_tokens=16)
    three, two = train
    assert three.segments is not None and two.segments is not None
    for segment in range(3):
        shown = pieces(wordpiece, three.ids[three.segments == segment])
        assert shown[0] == "[CLS]" and shown[-1] == "[SEP]" and len(shown) <= 16
    assert set(two.segments.tolist()) == {0, 1} and train.card.targets == 2
    assert card.sources[0].cut == 1


def test_a_source_is_context_and_its_target_is_learnt(wordpiece: Path, tmp_path: Path) -> None:
    _, train, _ = prepared(wordpiece, tmp_path, [{"source": "one two", "target": "uno dos"}], "seq2seq", held_fraction=0)  # fmt: skip
    [example] = train
    shown = pieces(wordpiece, example.ids)
    first = int(np.argmax(example.mask))
    assert shown[0] == "[CLS]" and "".join(shown[1 : first - 1]).replace("##", "") == "onetwo"
    assert example.mask[first:].all() and example.labels is None


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("seq2seq", {"source": "one two", "target": "uno dos"}),
        ("token-classification", {"tokens": ["one", "two"], "tags": ["B-N", "O"]}),
    ],
)
def test_a_prepared_line_has_the_records_own_keys_beside_ours(
    kind: str, record: dict[str, Any], wordpiece: Path, tmp_path: Path
) -> None:
    prepared(wordpiece, tmp_path, [record], kind, held_fraction=0)
    [line] = map(json.loads, (tmp_path / "out" / "train.jsonl").open())
    assert line.items() >= record.items()
    shared = "source" if kind == "seq2seq" else "tokens"
    assert {*line} - {*record} == {"sha256", "source", "tokens"} - {shared} | {f"document_{shared}"}


def test_the_same_files_give_the_same_bytes_and_other_data_has_no_columns(
    wordpiece: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prepared(wordpiece, tmp_path / name, SPORTS, "classification")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / "out").rglob("*.*"))
    assert any(file.name == "labels.bin" for file in files)
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    texts = [{"text": f"A text of its own, number {n}."} for n in range(9)]
    prepare([write(tmp_path / "t.jsonl", texts)], wordpiece, tmp_path / "plain", DataOptions())
    assert {file.name for file in (tmp_path / "plain" / "train").iterdir()} == {
        "tokens.bin", "mask.bin", "offsets.bin", "card.json",
    }  # fmt: skip
    assert '"kind"' not in (tmp_path / "plain" / "train" / "card.json").read_text()
