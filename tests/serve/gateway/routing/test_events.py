"""The filter on an engine's stream: same bytes out however they were cut, and nothing bad passes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gateway.routing.events import MAX_EVENT_BYTES, BrokenStream, EngineError, EventFilter

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}}]})


def feed_all(events: EventFilter, pieces: list[bytes]) -> bytes:
    return b"".join(events.feed(piece) for piece in pieces if not events.done)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_events_pass_unchanged_however_they_are_cut(texts: list[str], cuts: list[int], strip: bool) -> None:
    deltas = b"".join(delta(text) for text in texts)
    usage = event({"choices": [], "usage": USAGE})
    stream = deltas + usage + b"data: [DONE]\n\n"
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    events = EventFilter(strip_usage=strip)
    passed = feed_all(events, [stream[a:b] for a, b in pairwise(borders)])
    assert passed == deltas + (b"" if strip else usage) + b"data: [DONE]\n\n"
    assert (events.done, events.usage, events.events) == (True, USAGE, len(texts))


@pytest.mark.parametrize(
    "text", ['"usage": {"prompt_tokens": 9}', '"error": {"message": "x"}', "data: [DONE]\n\n"]
)
def test_words_inside_the_text_are_only_text(text: str) -> None:
    events = EventFilter(strip_usage=True)
    assert events.feed(delta(text)) == delta(text)
    assert events.usage is None
    assert not events.done


def test_an_error_event_ends_the_stream_and_what_came_before_it_passes() -> None:
    events = EventFilter(strip_usage=False)
    with pytest.raises(EngineError) as caught:
        events.feed(delta("a") + event({"error": {"message": "x", "code": 400}}) + delta("b"))
    assert caught.value.error["code"] == 400
    assert events.passed == delta("a")


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage\n\n",
        b"data: {bad json\n\n",
        b'data: "text"\n\n',
        b'data: {"a":"\xff"}\n\n',
        b"data: {}x\n\n",
        b": \x80\n\n",
    ],
)
def test_what_is_no_event_is_refused(bad: bytes) -> None:
    with pytest.raises(BrokenStream):
        EventFilter(strip_usage=False).feed(bad)


def test_an_endless_event_is_refused_at_a_bounded_size() -> None:
    events = EventFilter(strip_usage=False)
    with pytest.raises(BrokenStream):
        for _ in range(MAX_EVENT_BYTES // 1000 + 2):
            assert events.feed(b"data: " + b"x" * 1000) == b""


def test_comments_keep_the_stream_alive_and_are_not_counted() -> None:
    events = EventFilter(strip_usage=False)
    assert events.feed(b": ping\n\n") == b": ping\n\n"
    assert events.events == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_pass_as_whole_events_or_are_refused(pieces: list[bytes]) -> None:
    events = EventFilter(strip_usage=True)
    try:
        passed = feed_all(events, pieces)
    except (BrokenStream, EngineError):
        return
    assert not passed or passed.endswith(b"\n\n")
    passed.decode()
