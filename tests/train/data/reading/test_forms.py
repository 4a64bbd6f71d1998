"""The forms in which people keep examples: read alike, named in the card, or refused."""

import csv
import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import EverlearnError, InvalidInput
from tests.train.data.reading.test_read import read_in_a_process
from train.data.examples import Chat, Text
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.read import Limits, read_examples

PAIRS = [(f'What is "{n}", in words,\nplease?', f"It is number {n}; that's all.\nTruly.") for n in range(20)]
KEEP_ALL = DataOptions(held_fraction=0.25)


def said(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def lines(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def table(delimiter: str, names: list[str], rows: list[tuple], **options: Any) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, **options)
    writer.writerow(names)
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(records: list[dict]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), stream)
    return stream.getvalue()


CHATS = [{"messages": said(*pair)} for pair in PAIRS]
SHAREGPT = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS]
ALPACA = [{"instruction": q.partition("\n")[0], "input": q.partition("\n")[2], "output": a} for q, a in PAIRS]
PROMPTS = [{"prompt": q, "completion": a} for q, a in PAIRS]
TRL = [{"prompt": said(q, a)[:1], "completion": said(q, a)[1:]} for q, a in PAIRS]
PREFERENCES = [{"prompt": q, "chosen": a, "rejected": "No idea."} for q, a in PAIRS]
IMPLICIT = [{"chosen": said(q, a), "rejected": said(q, "No idea.")} for q, a in PAIRS]
OPENAI = [
    {
        "input": {"messages": said(q, a)[:1]},
        "preferred_output": said(q, a)[1:],
        "non_preferred_output": said(q, "No idea.")[1:],
    }
    for q, a in PAIRS
]
ANTHROPIC = [
    {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: No idea."}
    for q, a in PAIRS
]
QUESTIONS = [{"question": q, "answer": a} for q, a in PAIRS]
AS_ROWS = [(json.dumps(chat["messages"]), n) for n, chat in enumerate(CHATS)]

FILES: dict[str, tuple[bytes, str]] = {
    "chat.jsonl": (lines(CHATS), "chat"),
    "chat.json": (json.dumps(CHATS).encode(), "chat"),
    "pretty.json": (b"\xef\xbb\xbf" + json.dumps(CHATS, indent=4).encode(), "chat"),
    "pretty_list.jsonl": (json.dumps(CHATS, indent="\t").replace("\n", "\r\n").encode(), "chat"),
    "wrapped.json": (
        json.dumps({"version": "1.0", "data": CHATS, "license": {"name": "MIT"}}, indent=2).encode(),
        "chat",
    ),
    "lines.json": (b"\n" + lines(CHATS), "chat"),
    "one_after_another.json": (b"\n".join(json.dumps(c, indent=1).encode() for c in CHATS), "chat"),
    "boms.jsonl": (b"".join(b"\xef\xbb\xbf" + lines([chat]) for chat in CHATS), "chat"),
    "chat.json.gz": (gzip.compress(json.dumps(CHATS).encode()), "chat"),
    "chat.parquet": (parquet(CHATS), "chat"),
    "chat.csv": (table(",", ["messages", "id"], AS_ROWS), "chat"),
    "sharegpt.json": (json.dumps(SHAREGPT).encode(), "ShareGPT"),
    "sharegpt.parquet": (parquet(SHAREGPT), "ShareGPT"),
    "alpaca.json": (json.dumps(ALPACA, indent=2).encode(), "Alpaca"),
    "alpaca.csv": (table(",", list(ALPACA[0]), [tuple(each.values()) for each in ALPACA]), "Alpaca"),
    "alpaca.parquet": (parquet(ALPACA), "Alpaca"),
    "prompts.jsonl": (lines(PROMPTS), "prompt and completion"),
    "trl.jsonl": (lines(TRL), "prompt and completion"),
    "trl.parquet": (parquet(TRL), "prompt and completion"),
    "table.csv": (
        b"\xef\xbb\xbf" + table(",", [" Prompt", "COMPLETION "], PAIRS),
        "prompt and completion",
    ),
    "unix.csv": (table(",", ["prompt", "completion"], PAIRS, lineterminator="\n"), "prompt and completion"),
    "excel.csv": (table(";", ["prompt", "completion"], PAIRS), "prompt and completion"),
    "table.tsv": (table("\t", ["prompt", "completion"], PAIRS), "prompt and completion"),
    "TABLE.TSV.GZ": (
        gzip.compress(table("\t", ["prompt", "completion"], PAIRS)),
        "prompt and completion",
    ),
    "questions.jsonl": (lines(QUESTIONS), "question and answer"),
    "preferences.jsonl": (lines(PREFERENCES), "preferences, of which the chosen answers are learnt"),
    "preferences.parquet": (parquet(IMPLICIT), "preferences, of which the chosen answers are learnt"),
    "openai.jsonl": (lines(OPENAI), "preferences, of which the chosen answers are learnt"),
    "anthropic.jsonl": (lines(ANTHROPIC), "preferences, of which the chosen answers are learnt"),
}


@pytest.fixture(scope="module")
def expected(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return stores(FILES["chat.jsonl"][0], "chat.jsonl", tokenizer_dir, tmp_path_factory.mktemp("chat"))


def stores(content: bytes, name: str, tokenizer_dir: Path, folder: Path) -> dict[str, bytes]:
    (folder / name).write_bytes(content)
    prepare([folder / name], tokenizer_dir, folder / "out", KEEP_ALL)
    return {
        f"{side}/{file.name}": file.read_bytes()
        for side in ("train", "held")
        for file in (folder / "out" / side).iterdir()
    }


@pytest.mark.parametrize("name", FILES)
def test_the_same_examples_in_any_form_become_the_same_stores_and_the_card_names_the_form(
    name: str, tokenizer_dir: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    content, form = FILES[name]
    assert stores(content, name, tokenizer_dir, tmp_path) == expected
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())
    assert card["sources"][0]["forms"] == {form: 20} and card["sources"][0]["read"] == 20


TOOL = {"name": "weather", "description": "Tells it", "parameters": {"type": "object", "properties": {}}}
ARGUMENTS = {"city": "Zürich", "days": [1, 2]}
CALL = {"name": "weather", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}
ASKED, RESULT = {"role": "user", "content": "And there?"}, {"role": "tool", "content": "Rain."}
CALLING = {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}
ANSWER = {"role": "assistant", "content": "It rains."}
TOLD = Chat([ASKED, CALLING, RESULT, ANSWER], [{"type": "function", "function": TOOL}])

CALLS: dict[str, dict] = {
    "as OpenAI has it": {"messages": TOLD.messages, "tools": TOLD.tools},
    "tools as JSON": {"messages": TOLD.messages, "tools": json.dumps(TOLD.tools)},
    "bare functions": {"messages": TOLD.messages, "tools": [TOOL]},
    "the Responses API's": {"messages": TOLD.messages, "tools": [{"type": "function", **TOOL}]},
    "Anthropic's": {
        "messages": TOLD.messages,
        "tools": [
            {"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}
        ],
    },
    "arguments as an object": {
        "messages": [
            ASKED,
            {**CALLING, "tool_calls": [{"function": {"name": "weather", "arguments": ARGUMENTS}}]},
            RESULT,
            ANSWER,
        ],
        "tools": TOLD.tools,
    },
    "calls without a function within": {
        "messages": [ASKED, {**CALLING, "content": "", "tool_calls": json.dumps([CALL])}, RESULT, ANSWER],
        "tools": TOLD.tools,
    },
    "OpenAI's first form": {
        "messages": [
            ASKED,
            {"role": "assistant", "content": None, "function_call": CALL},
            {"role": "function", "content": "Rain."},
            ANSWER,
        ],
        "functions": [TOOL],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "And there?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
            {"from": "observation", "value": "Rain."},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([TOOL]),
    },
    "prompt and completion": {
        "prompt": [ASKED],
        "completion": [CALLING, RESULT, ANSWER],
        "tools": TOLD.tools,
    },
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_and_tools_in_any_form_are_the_same(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([CALLS[case]]))
    [example] = read_examples(tmp_path / "a.jsonl")
    assert example == TOLD and example.ignored == ()


def one(record: object, folder: Path) -> Chat | Text:
    (folder / "a.jsonl").write_text(json.dumps(record))
    return next(iter(read_examples(folder / "a.jsonl")))


def test_a_text_before_a_question_stays_before_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be short."}
    expected = Chat([system, *said("Q", "A"), *said("Who?", "Me.")])
    alpaca = {
        "instruction": "Who?",
        "input": "",
        "output": "Me.",
        "system": "Be short.",
        "history": [["Q", "A"]],
    }
    assert one(alpaca, tmp_path) == expected
    assert (
        one(
            {"prompt": "Who?", "response": "Me.", "system_prompt": "Be short.", "history": [["Q", "A"]]},
            tmp_path,
        )
        == expected
    )
    turns = [("system", "Be short."), ("human", "Q"), ("gpt", "A"), ("user", "Who?"), ("assistant", "Me.")]
    assert one({"conversations": [{"from": a, "value": b} for a, b in turns]}, tmp_path) == expected
    assert one({"system": "Be short.", "messages": expected.messages[1:]}, tmp_path) == expected


def test_a_prompts_own_answers_are_not_learnt(tmp_path: Path) -> None:
    read_only = [ASKED, {**ANSWER, "weight": 0}]
    expected = Chat([*read_only, *said("Who?", "Me.")])
    prompt = [ASKED, ANSWER, *said("Who?", "Me.")[:1]]
    completion, other = said("Who?", "Me.")[1:], said("Who?", "You.")[1:]
    assert one({"prompt": prompt, "completion": completion}, tmp_path) == expected
    assert one({"prompt": prompt, "chosen": completion, "rejected": other}, tmp_path) == expected
    assert one({"chosen": [*prompt, *completion], "rejected": [*prompt, *other]}, tmp_path) == expected


def test_keys_that_nothing_was_made_of_are_named(tmp_path: Path) -> None:
    marked = [{**each, "id": 7} for each in said("Q", "A")]
    assert one({"messages": marked, "topic": "x", "note": None}, tmp_path).ignored == (
        "topic",
        "messages[].id",
    )
    alpaca = {"instruction": "Q", "input": "", "output": "A", "text": "Below is an instruction. Q A"}
    assert one(alpaca, tmp_path) == Chat(said("Q", "A")) and one(alpaca, tmp_path).ignored == ("text",)
    ultrachat = {"prompt": "Q", "messages": said("Q", "A")}
    assert one(ultrachat, tmp_path).ignored == ("prompt",)
    (tmp_path / "t.csv").write_text("text,label\none,1\n")
    assert [each.ignored for each in read_examples(tmp_path / "t.csv")] == [("label",)]


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "a key twice": ("f.jsonl", b'{"text": "a", "text": "b"}', r'f\.jsonl:1: is not JSON: the key "text" comes twice'),
    "a key twice, deep": ("f.json", b'[{"messages": [{"role": "user", "role": "tool"}]}]', r'f\.json:1: .*"role" comes twice'),
    "NaN": ("f.jsonl", b'{"text": NaN}', r"f\.jsonl:1: is not JSON: NaN"),
    "a null text": ("f.jsonl", b'{"text": null}', r'f\.jsonl:1: "text" is null'),
    "null messages": ("f.jsonl", b'{"messages": null, "id": 3}', r'f\.jsonl:1: "messages" is null'),
    "a null row": ("f.parquet", parquet([*CHATS, {"messages": None}]), r'f\.parquet:21: "messages" is null'),
    "null content": (
        "f.parquet",
        parquet([*CHATS, {"messages": [*said("Q", "A")[:1], {"role": "assistant", "content": None}]}]),
        r'f\.parquet:21: messages\[1\]: "content" is null, not text',
    ),
    "an answer alone": ("f.jsonl", lines([{"messages": said("Q", "A")[1:]}]), r"f\.jsonl:1: has nothing before its answer"),
    "a list of lists": ("f.json", b'[["a", "b"]]', r"f\.json:1: is a list, not an object"),
    "a list that ends early": ("f.json", json.dumps(CHATS, indent=1).encode()[:-2], r"f\.json:1: .*does not end"),
    "a list cut within": ("f.json", json.dumps(CHATS, indent=1).encode()[:-40], r"f\.json:[0-9]+: is not JSON: the file ends"),
    "no comma": ("f.json", b'[{"text": "a"}\n {"text": "b"}]', r"f\.json:2: is not JSON: a comma is missing"),
    "a comma too many": ("f.json", b'[{"text": "a"},\n]', r"f\.json:2: is not JSON: a comma before"),
    "two lists": ("f.json", b'{"a": [{"text": "a"}],\n "b": [{"text": "b"}]}', r'f\.json:2: has a second list, "b"'),
    "a list beside a text": ("f.json", b'{"id": 1, "rows": [{"text": "a"}], "text": "b"}', r'f\.json:1: has a list, and "text" beside'),
    "a list of messages": ("f.json", json.dumps(said("Q", "A")).encode(), r"f\.json:1: is a message, not an example.*messages"),
    "a number as a prompt": ("f.jsonl", lines([{"prompt": 3, "completion": "A"}]), r'f\.jsonl:1: "prompt" is no text'),
    "more behind it": ("f.json", b'[{"text": "a"}]\n{"text": "b"}', r"f\.json:2: has more after its end"),
    "no such columns": ("f.csv", b"a,b\n1,2\n", r'f\.csv:1: has the columns "a", "b"\. Right would be'),
    "an answer's column alone": ("f.csv", b"id,output\n1,2\n", r"f\.csv:1: has the columns"),
    "too few cells": ("f.csv", b"prompt,completion\na,b\na\n", r"f\.csv:3: has 1 cells"),
    "open quotes": ("f.csv", b'prompt,completion\na,b\na,"b\n', r"f\.csv:[0-9]: is not CSV"),
    "a column twice": ("f.csv", b"text,Text\na,b\n", r'f\.csv:1: has the column "text" twice'),
    "an empty answer in a table": ("f.csv", b"prompt,completion\na,\n", r'f\.csv:2: has a "prompt" and no "completion"'),
    "markup that is no web page": ("f.xml", b"<p>Hello</p>", r'f\.xml: files that end in "\.xml" are not read.*\.csv'),
    "an archive": ("f.zip", b"PK\x03\x04", r'f\.zip: files that end in "\.zip"'),
    "a document": ("f.docx", b"PK\x03\x04", r'f\.docx: files that end in "\.docx"'),
    "an unknown name": ("f.weird", b"hello there", r'f\.weird: files that end in "\.weird"'),
    "no suffix": ("notes", b"hello there, this is prose", r"notes: does not say what it holds"),
    "records by another name": ("f.txt", lines(CHATS), r"f\.txt:1: holds JSON lines, not prose"),
    "an image": ("f.jsonl", lines([{**SHAREGPT[0], "images": ["a.png"]}]), r'f\.jsonl:1: has "images"'),
    "a question that needs a text": ("f.jsonl", lines([{"question": "Q", "answer": "A", "context": "C"}]), r'has "context" beside'),
    "an unwanted answer": ("f.jsonl", lines([{"prompt": "Q", "completion": "A", "label": False}]), r'has the label "false"'),
    **{
        f"an unwanted answer {n}": ("f.jsonl", lines([{**record, "label": label}]), rf'f\.jsonl:1: has the label "{str(label).strip().lower()}"')
        for n, (record, label) in enumerate(
            [
                *((PROMPTS[0], label) for label in (0, "False", "false", " FALSE ", "0")),
                *((records[0], False) for records in (CHATS, SHAREGPT, ALPACA, QUESTIONS, PREFERENCES, OPENAI, TRL)),
            ]
        )
    },
    "an unwanted answer in a table": ("f.csv", b"prompt,completion,label\nQ,A,True\nQ,B,False\n", r'f\.csv:3: has the label "false"'),
    "a list of JSON by another name": ("f.txt", json.dumps(CHATS, indent=2).encode(), r"f\.txt:1: holds a list of JSON, not prose.*\.jsonl"),
    "texts by another name": ("f.txt", lines([{"text": "a"}, {"text": "b"}]), r"f\.txt:1: holds JSON lines, not prose.*\.jsonl"),
    "one text by another name": ("f.md", b'\xef\xbb\xbf\n{"id": 3, "text": "a"}', r"f\.md:1: holds JSON lines"),
    "records on many lines by another name": ("f.md", b"\n".join(json.dumps(c, indent=1).encode() for c in CHATS), r"f\.md:1: holds JSON"),
    "wrapped by another name": ("f.txt", json.dumps({"version": 1, "data": CHATS}).encode(), r"f\.txt:1: holds JSON"),
    "one long text by another name": ("f.txt", lines([{"text": "a" * 100_000}]), r"f\.txt:1: holds JSON"),
    "a long list by another name": ("f.txt", json.dumps([{"text": "a" * 100_000}]).encode(), r"f\.txt:1: holds a list"),
    "chosen is a list of text": ("f.jsonl", b'{"prompt":"x","chosen":["a"],"rejected":["b"]}', r"f\.jsonl:1: messages\[0\]: is text, not an object"),
    "chosen is a number": ("f.jsonl", b'{"prompt":"x","chosen":5,"rejected":"b"}', r"f\.jsonl:1: messages\[0\]: is a number"),
    "chosen is null in a list": ("f.jsonl", b'{"prompt":"x","chosen":[null],"rejected":["b"]}', r"f\.jsonl:1: messages\[0\]: is null"),
    "preferred is JSON of an object": (
        "f.jsonl", lines([{**OPENAI[0], "preferred_output": '{"a": 1}'}]), r'f\.jsonl:1: "preferred_output" is no text'
    ),
    "two kinds of reasoning": (
        "f.jsonl",
        lines([{"messages": [ASKED, {**ANSWER, "reasoning_content": "One.", "thinking": "Two."}]}]),
        r'f\.jsonl:1: messages\[1\]: has both "reasoning_content" and "thinking"',
    ),
    "arguments cut short": (
        "f.jsonl",
        lines([{"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{bad"}}]}]}]),
        r"f\.jsonl:1: messages\[1\]: a call's arguments is text that is not JSON",
    ),
    "arguments that are a list": (
        "f.jsonl",
        lines([{"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "[1]"}}]}]}]),
        r"f\.jsonl:1: messages\[1\]: has a call whose arguments are no object",
    ),
    "a table of an old Mac": ("f.csv", b"prompt,completion\ra,b\rc,d\r", r"f\.csv:1: is not CSV.*line breaks as of Unix"),
    "an empty question in a table": ("f.csv", b"question,answer\n,a\n", r'f\.csv:2: has a "question" that is empty'),
    "a quote that swallows a row": ("f.tsv", b'prompt\tcompletion\na\t"b\nc\td"\n', r'f\.tsv:2: has a cell that begins with "'),
    "chosen without a prompt": ("f.jsonl", lines([{"chosen": "A", "rejected": "B"}]), r'has "chosen" and no "prompt"'),
    "two questions": ("f.jsonl", lines([{"prompt": "a", "question": "b", "completion": "c"}]), r'has both "prompt" and "question"'),
    "two forms of call": (
        "f.jsonl",
        lines([{"messages": [ASKED, {**CALLING, "function_call": CALL}]}]),
        r'messages\[1\]: has both "function_call" and "tool_calls"',
    ),
    "tools that are no JSON": ("f.jsonl", lines([{**CHATS[0], "tools": "none"}]), r'f\.jsonl:1: "tools" is text that is not JSON'),
}  # fmt: skip


PROSE: dict[str, str] = {
    "a record that is explained": '{"text": "a"}\n\nSo a record looks, on a line of its own.\n',
    "a list that is explained": '[{"text": "a"}]\nSo a list looks.\n',
    "a record within": 'A record:\n\n```json\n{"messages": []}\n{"text": "b"}\n```\n',
    "a template's link": "[{{ site.title }}](https://example.org) is a page.\n",
    "settings": '{"indent": 2}\n',
    "a set in braces": "{a, b} is a set of two.\n",
    "a link": "[Text](page.md) and more.\n",
}


@pytest.mark.parametrize("case", PROSE)
def test_prose_that_shows_json_is_kept(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(PROSE[case])
    assert [each.record["text"] for each in read_examples(tmp_path / "a.md")] == [PROSE[case].rstrip("\n")]


def test_a_label_that_says_nothing_about_being_wanted_is_told_as_unused(tmp_path: Path) -> None:
    assert one({**PROMPTS[0], "label": True}, tmp_path).ignored == ()
    assert one({**PROMPTS[0], "label": 3}, tmp_path).ignored == ("label",)
    refused = {"messages": [ASKED, {**ANSWER, "refusal": "I will not."}]}
    assert one(refused, tmp_path).ignored == ("messages[].refusal",)


def test_an_input_alone_is_what_is_asked(tmp_path: Path) -> None:
    alpaca = {"instruction": "", "input": "2+2", "output": "4"}
    assert one(alpaca, tmp_path) == Chat(said("2+2", "4"))


def test_one_double_among_many_keys_is_found_in_no_time(tmp_path: Path) -> None:
    keys = ", ".join(f'"k{n}": {n}' for n in range(40_000))
    (tmp_path / "f.jsonl").write_text(f'{{{keys}, "k39999": 1}}')
    begin = time.process_time()
    with pytest.raises(InvalidInput, match='"k39999" comes twice'):
        list(read_examples(tmp_path / "f.jsonl"))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_of_uncertain_form_is_refused_by_place_and_reason(case: str, tmp_path: Path) -> None:
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=expected):
        list(read_examples(tmp_path / name))


def test_a_list_of_examples_streams_and_one_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "f.json").open("wb") as file:
        file.write(b"[\n" + b",\n".join([json.dumps(CHATS[0], indent=2).encode()] * 20_000) + b",\n{}\n]")
    grown_kib, message = read_in_a_process(tmp_path / "f.json")
    assert "f.json:" in message and "has no keys" in message and grown_kib < 8 * 1024
    (tmp_path / "f.json").write_bytes(b'[{"text": "' + b"a" * 30_000_000)
    grown_kib, message = read_in_a_process(tmp_path / "f.json")
    assert message.startswith("f.json:1: the example is longer than 1048576 bytes") and grown_kib < 12 * 1024
    (tmp_path / "f.csv").write_bytes(b'text\n"' + (b"a" * 999 + b"\n") * 30_000)
    grown_kib, message = read_in_a_process(tmp_path / "f.csv")
    assert message.startswith("f.csv:2: ") and grown_kib < 200 * 1024


SMALL = Limits(max_line_bytes=100, max_row_bytes=400)
KEYS = ["messages", "conversations", "from", "value", "role", "content", "prompt", "completion", "instruction",
        "output", "chosen", "rejected", "tools", "tool_calls", "function_call", "arguments", "name", "history", "text"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["user", "assistant", "human", "gpt", "[]", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=120)
    | st.text(alphabet='[]{},:"\\ \n\t;ab1\ufeff', max_size=60).map(str.encode)
    | VALUES.map(lambda value: json.dumps(value, indent=1).encode())
    | st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), max_size=3).map(
        lambda value: json.dumps(value).encode()
    )
    | st.text(alphabet=',;"\n\r\tab', max_size=40).map(lambda rows: b"prompt,completion\n" + rows.encode()),
    name=st.sampled_from(["any.json", "any.jsonl", "any.csv", "any.tsv", "any.txt", "any"]),
)
def test_any_bytes_are_examples_or_one_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(content)
    try:
        for example in read_examples(file, limits=SMALL):
            assert example.sha256 and example.source.startswith(f"{name}:") and example.form
    except EverlearnError as error:
        assert isinstance(error, InvalidInput) and error.message.startswith(name)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(alphabet='ab[]{}",:\\é世\n ', min_size=1, max_size=30), min_size=1, max_size=6),
    indent=st.none() | st.integers(0, 3),
    ascii=st.booleans(),
    dump=st.sampled_from([lambda records: records, lambda records: {"rows": records}]),
)
def test_every_json_list_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    indent: int | None,
    ascii: bool,
    dump: Callable[[list], object],
) -> None:
    file = tmp_path_factory.getbasetemp() / "list.json"
    records = [{"text": text} for text in texts]
    file.write_text(json.dumps(dump(records), indent=indent, ensure_ascii=ascii), encoding="utf-8")
    assert [example.record for example in read_examples(file)] == records
