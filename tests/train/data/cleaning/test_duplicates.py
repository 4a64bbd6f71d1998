"""Which examples count as the same: what is learnt decides, and what they share does not."""

import json
import random
import time
from pathlib import Path

import pytest

from train.data.card import DataCard
from train.data.options import DataOptions
from train.data.prepare import prepare

RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6)) for _ in range(5000)]
KEEP_ALL = DataOptions(held_fraction=0, max_tokens=100_000)


def say(words: int) -> str:
    return " ".join(RANDOM.choice(WORDS) for _ in range(words))


def chat(question: str, answer: str | dict, system: str = "", **more: object) -> dict:
    first = [{"role": "system", "content": system}] if system else []
    last = {"content": answer} if isinstance(answer, str) else answer
    messages = [*first, {"role": "user", "content": question}, {"role": "assistant", **last}]
    return {"messages": messages, **more}


def call(**arguments: object) -> dict:
    function = {"name": "weather", "arguments": json.dumps(arguments)}
    return {"content": None, "tool_calls": [{"type": "function", "function": function}]}


def card(records: list[dict], tokenizer_dir: Path, tmp_path: Path) -> DataCard:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return prepare([file], tokenizer_dir, tmp_path / "out", KEEP_ALL)


SHARED = {words: say(words) for words in (150, 200, 300, 1000)}
CANNED = [say(30) for _ in range(5)]
LABELS = ["positive", "negative", "mixed", "neutral", "positive"]
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

DISTINCT: dict[str, list[dict]] = {
    **{f"a system prompt of {n} words": [chat(say(10), say(10), text) for _ in range(100)] for n, text in SHARED.items()},
    **{f"and answers of {n} words": [chat(say(10), say(n), SHARED[300]) for _ in range(30)] for n in (1, 14, 60)},
    "an instruction in the question": [chat(f"{SHARED[300]} {say(10)}", say(30)) for _ in range(100)],
    "an instruction, reviews, labels": [chat(f"{SHARED[150]}\n{say(20)}", label) for label in LABELS],
    "an instruction, reviews, one label": [chat(f"{SHARED[150]}\n{say(20)}", "positive") for _ in range(5)],
    "one question, other labels": [chat(SHARED[150], label) for label in LABELS[:4]],
    "one long document, two questions": [chat(f"{SHARED[1000]}\n{say(8)}", say(25)) for _ in range(2)],
    "one long answer to other questions": [chat(say(10), SHARED[150]) for _ in range(30)],
    "one long answer, two questions, one document": [chat(f"{SHARED[300]} {say(9)}", SHARED[150]) for _ in range(2)],
    "one long answer under other system prompts": [chat("Who?", SHARED[150], say(12)) for _ in range(4)],
    "other arguments": [chat(SHARED[150], call(city=say(1)), tools=[SCHEMA]) for _ in range(12)],
    "other arguments among many equal ones": [chat("When?", call(note=SHARED[150], at=n)) for n in range(12)],
    "other arguments after the same words": [
        chat("When?", {**call(at=n), "content": SHARED[150]}) for n in range(12)
    ],
    "another number in a long answer": [chat(f"Item {n}?", f"{SHARED[150]} {n} {say(0)}") for n in range(12)],
    "a conversation that goes on": [
        {"messages": [turn for n in range(length) for turn in chat(f"{n} {SHARED[150][n * 40 : n * 40 + 39]}", SHARED[1000][n * 150 : n * 150 + 150])["messages"]]}
        for length in range(1, 15)
    ],
    "one template, other topics": [{"text": f"{SHARED[200]} {say(15)} {SHARED[150]}"} for _ in range(40)],
    "one question, words in another order, one answer": [
        chat(f"Is {a} larger than {b} by any measure that anyone knows of?", SHARED[150])
        for a, b in (("Rome", "Bern"), ("Bern", "Rome"))
    ],
    "answers that name what was asked": [
        chat(f"What is the capital of {say(1)}?", f"{CANNED[0]} {say(1)} {SHARED[150]}") for _ in range(60)
    ],
    "answers that say what was said before, and name another": [
        chat(f"What is the capital of {say(1)}?", f"{SHARED[150]} {say(1)} {SHARED[150]}") for _ in range(4)
    ],
    "JSON answers with long fixed fields": [
        chat(f"Review {n}", json.dumps({"note": SHARED[150], "label": label}), SHARED[200])
        for n, label in enumerate(LABELS)
    ],
    "two words and canned answers, under a system prompt": [
        chat(f"{say(1)} {say(1)}", CANNED[n % 5], SHARED[200]) for n in range(100)
    ],
    "one word of two, and a canned answer, under a system prompt": [
        chat(f"Capital {say(1)}?", CANNED[0], SHARED[200]) for _ in range(6)
    ],
    "system prompts of one other word": [
        chat(SHARED[150], CANNED[0], f"{SHARED[200]} {word}") for word in ("formal", "casual")
    ],
    "another number in a long question": [
        chat(f"{SHARED[150]} {number}", CANNED[0]) for number in (3, 4)
    ],
    **{
        f"one question, answers that differ by {kind}": [chat("Show it.", f"{SHARED[150]} {a} {CANNED[0]}") for a in answers]
        for kind, answers in {
            "comparison": ["if a < b:", "if a > b:", "if a == b:", "if a != b:", "if a <= b:"],
            "operator": ["x + 1", "x - 1", "x -1", "x * 1", "x / 1"],
            "SQL": ["WHERE a = b AND c", "WHERE a = b OR c", "WHERE a <> b AND c", "WHERE NOT a = b AND c"],
            "not": ["it is allowed", "it is not allowed"],
            "n't": ["he does it", "he doesn't it"],
        }.items()
    },
    "one question, Yes. or No. first": [chat("Is it?", f"{word} {SHARED[150]}") for word in ("Yes.", "No.")],
    "questions, Yes. or No. first": [chat(f"Is {n} prime?", f"{word} {SHARED[150]}") for n, word in ((7, "Yes."), (9, "No."))],
    "answers by one template": [chat("Why?", f"{SHARED[200]} {say(15)} {SHARED[150]}") for _ in range(40)],
}  # fmt: skip


@pytest.mark.parametrize("case", DISTINCT)
def test_examples_that_teach_other_things_are_all_kept(
    case: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    records = DISTINCT[case]
    random.Random(1).shuffle(records)
    found = card(records, tokenizer_dir, tmp_path)
    assert (found.kept, found.dropped) == (len(records), {})


def one_word_changed(text: str) -> str:
    words = text.split()
    words[len(words) // 2] = "another"
    return " ".join(words)


QUESTION, ANSWER = say(10), SHARED[150]
ALIKE: dict[str, list[dict]] = {
    "a question with one other word": [chat(QUESTION, ANSWER), chat(one_word_changed(QUESTION), ANSWER)],
    "and under a shared system prompt": [
        chat(QUESTION, ANSWER, SHARED[300]),
        chat(one_word_changed(QUESTION), ANSWER, SHARED[300]),
    ],
    "an answer with one other word": [chat(QUESTION, ANSWER), chat(QUESTION, one_word_changed(ANSWER))],
    "a text with one other word": [{"text": ANSWER}, {"text": one_word_changed(ANSWER)}],
    "many such texts": [{"text": ANSWER.replace(word, "another")} for word in ANSWER.split()[::10]],
    "many such questions": [chat(QUESTION.replace(word, "another"), ANSWER) for word in QUESTION.split()],
    "a word more in the question": [chat(QUESTION, ANSWER), chat(f"please {QUESTION}", ANSWER)],
    "another word in the answer, under one system prompt": [
        chat(QUESTION, ANSWER, SHARED[200]), chat(QUESTION, one_word_changed(ANSWER), SHARED[200])
    ],
    "equal labels": [chat(QUESTION, "positive"), chat(QUESTION, "positive")],
    "case and punctuation": [chat(QUESTION, ANSWER), chat(QUESTION.upper() + "?", ANSWER.title() + ".")],
    "a conversation of two turns": [
        {"messages": [*chat("Who?", "Me.")["messages"], *chat(question, ANSWER)["messages"]]}
        for question in (QUESTION, one_word_changed(QUESTION))
    ],
    "Thai": [{"text": THAI_ONE} for THAI_ONE in (
        "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีนและออกเสียงแยกคำต่อคำ",
        "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีนและออกเสียงแยกคำต่อกัน",
    )],
}  # fmt: skip


@pytest.mark.parametrize("case", ALIKE)
def test_of_examples_that_teach_the_same_one_is_kept(case: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    found = card(ALIKE[case], tokenizer_dir, tmp_path)
    assert found.kept == 1 and found.read == len(ALIKE[case])


def test_which_is_kept_does_not_depend_on_the_files_or_their_order(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    records = [*(DISTINCT["one template, other topics"]), *(r for case in ALIKE.values() for r in case)]
    kept: list[set[str]] = []
    for turn, parts in enumerate((1, 7)):
        random.Random(turn).shuffle(records)
        folder = tmp_path / str(turn)
        folder.mkdir()
        for part in range(parts):
            lines = [json.dumps(record) + "\n" for record in records[part::parts]]
            (folder / f"{part}.jsonl").write_text("".join(lines))
        prepare([folder], tokenizer_dir, folder / "out", KEEP_ALL)
        kept.append({json.loads(line)["sha256"] for line in (folder / "out" / "train.jsonl").open()})
    assert kept[0] == kept[1] and 40 < len(kept[0]) < 50


def test_a_flood_of_one_answer_takes_time_by_its_number(tokenizer_dir: Path, tmp_path: Path) -> None:
    records = [chat(f"{SHARED[150]} {say(8)}", SHARED[150]) for _ in range(1000)]
    begin = time.process_time()
    assert card(records, tokenizer_dir, tmp_path).kept == 1000
    assert time.process_time() - begin < 60
