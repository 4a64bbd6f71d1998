"""What an answer says: text, calls, or a call that was cut. However it is cut into pieces, the answer is the same."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engines.calls import HERMES, Reading, Said, whole_calls

NAMES = ["get", "get_time", "weather"]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read(pieces: list[str], reason: str = "stop", **options: Any) -> Said:
    reading = Reading(options.pop("stop", ()), options.pop("names", NAMES), **options)
    said = Said()
    for piece in pieces:
        said.add(reading.feed(piece))
        if reading.stopped:
            break
    said.add(reading.finish(reason))  # type: ignore[arg-type]
    return said


def shown(said: Said) -> tuple[str, list[tuple[str, str]], str | None]:
    calls = [each["function"] for each in whole_calls(said.calls)]
    return said.text, [(each["name"], each["arguments"]) for each in calls], said.finish


FRAGMENTS = st.sampled_from(
    [
        "<", "<div>", "<tool_call>", "<tool_call>\n", "</tool_call>", "\n", " ", '{"name": "', "get", '", "arguments": ',
        "{}", '{"a": "}\\"{"}', "text", "<think>", "stop", "not json", "}", call("get", '{"a": [1, {"b": "}"}]}'),
        call("weather", "{}"), call("never_offered", "{}"), call("get_time", '"text"'), call("get", "7"),
    ]
)  # fmt: skip


@given(
    text=st.lists(FRAGMENTS, max_size=12).map("".join) | st.text(max_size=40),
    cuts=st.lists(st.integers(0, 400), max_size=30),
    stop=st.lists(st.sampled_from(["stop", "\n", "}", "ex", "<"]), max_size=2),
    reason=st.sampled_from(["stop", "length"]),
    must_call=st.booleans(),
)
def test_an_answer_is_the_same_however_it_is_cut_into_pieces(
    text: str, cuts: list[int], stop: list[str], reason: str, must_call: bool
) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(borders)]
    options = {"stop": stop, "must_call": must_call}
    whole = shown(read([text], reason, **options))
    assert shown(read(pieces, reason, **options)) == whole
    assert shown(read(list(text), reason, **options)) == whole
    assert {name for name, _ in whole[1]} <= set(NAMES)


@given(text=st.text() | st.lists(FRAGMENTS, max_size=6).map("".join))
def test_without_tools_everything_is_text(text: str) -> None:
    assert shown(read([text], names=[])) == (text, [], "stop")


@pytest.mark.parametrize(
    "text",
    [
        "<div>hello</div>",
        "<think>\nhm\n</think>\n\nParis",
        "a < b",
        "<",
        "Use it so: <tool_call>\nnot json\n</tool_call> then.",
        f"First {call('launch', '{}')} then.",
    ],
)
def test_what_is_no_call_of_a_function_on_offer_is_text(text: str) -> None:
    assert shown(read([text])) == (text, [], "stop")
    assert shown(read(list(text))) == (text, [], "stop")


def test_text_may_stand_before_calls() -> None:
    text = f"Let me look.\n{call('get', '{}')}\n{call('weather', json.dumps({'city': 'Zürich <tool_call>'}))}"
    assert shown(read(list(text))) == (
        "Let me look.\n",
        [("get", "{}"), ("weather", '{"city": "Z\\u00fcrich <tool_call>"}')],
        "tool_calls",
    )


def test_a_call_that_is_cut_shows_what_came_of_its_arguments_and_never_its_framing() -> None:
    text = call("weather", '{"city": "Oslo"}')
    complete = ("", [("weather", '{"city": "Oslo"}')], "length")
    for length in range(1, len(text)):
        for must_call in (True, False):
            said = shown(read([text[:length]], "length", must_call=must_call))
            head = len(HERMES.head("weather"))
            if length < head:
                assert said == ("<" if length == 1 and not must_call else "", [], "length")
            else:
                arguments = text[head:length]
                assert said == ("", [("weather", arguments)], "length") or said == complete
    assert shown(read([text], "length"))[1:] == ([("weather", '{"city": "Oslo"}')], "length")


@pytest.mark.parametrize("stop", ["\n", "}", '"', "tool", "Oslo", ">"])
def test_a_stop_string_cuts_text_and_no_call(stop: str) -> None:
    text = call("weather", '{"city": "Oslo"}')
    calls = [("weather", '{"city": "Oslo"}')]
    assert shown(read(list(text), stop=[stop])) == ("", calls, "tool_calls")
    assert shown(read(list(f"one{stop}two {text}"), stop=[stop])) == ("one", [], "stop")


ODD_TEXTS = st.text('ab"\\{,', max_size=3)


@given(
    value=st.recursive(
        st.none() | ODD_TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
        max_leaves=8,
    )
)
def test_keys_that_an_object_has_are_known_while_the_next_is_written(value: Any) -> None:
    text = json.dumps({"given": value})
    reading = Reading(json=True)
    for letter in text[:-1]:
        assert letter not in reading.repeated_keys(), "no key of a dictionary is there twice"
        reading.feed(letter)
    assert reading.repeated_keys() == [', "given"']
    reading.feed(",")
    assert reading.repeated_keys() == ['"given"', ' "given"']
    reading.feed(' "gi')
    assert reading.repeated_keys() == ['ven"']
    reading.feed("v")
    assert reading.repeated_keys() == ['en"']
    reading.feed("ing")
    assert reading.repeated_keys() == []


def test_arguments_stream_as_they_come() -> None:
    reading = Reading((), NAMES)
    said = [reading.feed(piece) for piece in list(call("get", '{"a": 1}'))]
    parts = [part for each in said for part in each.calls]
    assert [part.name for part in parts] == ["get", *[None] * 8]
    assert "".join(part.arguments for part in parts) == '{"a": 1}'
    assert parts[0].delta()["id"] == parts[0].id and "id" not in parts[1].delta()


@pytest.mark.parametrize("names", [NAMES, []])
def test_the_stop_string_that_ended_an_answer_is_told(names: list[str]) -> None:
    assert read(["one t", "wo three"], stop=("three", "two"), names=names).stop == "two"
    assert read(["one two"], stop=("three",), names=names).stop is None
    assert read(["one thr"], stop=("three",), names=names).stop is None
