"""Tokens to text, one at a time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engines.calls import Reading, overlap
from serve.engines.onnx.requests import RequestReader
from serve.engines.tokenizer import TextStream


def streamed(reader: RequestReader, tokens: list[int], stop: list[str]) -> tuple[list[str], Reading]:
    stream, reading = TextStream(reader.codec), Reading(stop)
    pieces = []
    for token in tokens:
        pieces.append(reading.feed(stream.push(token)).text)
        if reading.stopped:
            return pieces, reading
    return [*pieces, reading.feed(stream.finish()).text, reading.finish("stop").text], reading


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_what_the_tokenizer_decodes(reader: RequestReader, text: str) -> None:
    tokens = reader.codec.encode_literal(text)  # bytes that the vocabulary lacks are lost here
    pieces, _ = streamed(reader, tokens, [])
    assert "".join(pieces) == reader.codec.tokenizer.decode(tokens)


def test_a_character_of_several_tokens_appears_once_whole(reader: RequestReader) -> None:
    tokens = reader.codec.encode("🤖")
    assert len(tokens) > 1
    pieces, _ = streamed(reader, tokens, [])
    assert [piece for piece in pieces if piece] == ["🤖"]


def test_half_a_character_at_the_end_becomes_a_replacement_character(reader: RequestReader) -> None:
    pieces, _ = streamed(reader, reader.codec.encode("a🤖")[:-1], [])
    assert "".join(pieces) == "a\ufffd"


@given(text=st.text("abcd", max_size=30), stops=st.lists(st.text("abcd", min_size=1, max_size=4), max_size=4))
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop_string(reader: RequestReader, text: str, stops: list[str]) -> None:
    pieces, stream = streamed(reader, reader.codec.encode(text), stops)
    found = [text.find(stop) for stop in stops if stop in text]
    if found:
        assert stream.stopped
        shown = "".join(pieces)
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert "".join(pieces) == text


def test_a_stop_string_that_spans_tokens_never_shows_its_beginning(reader: RequestReader) -> None:
    tokens = [token for part in ("Hello", " wor", "ld", "!") for token in reader.codec.encode(part)]
    pieces, stream = streamed(reader, tokens, [" world"])
    assert stream.stopped
    assert "".join(pieces) == "Hello"


def test_special_tokens_are_no_text(reader: RequestReader) -> None:
    pieces, _ = streamed(reader, reader.codec.encode("a<|im_end|>b"), [])
    assert "".join(pieces) == "ab"


@given(text=st.text("ab", max_size=8), stop=st.text("ab", min_size=1, max_size=5))
def test_overlap_is_the_longest_proper_beginning_of_stop_at_the_end(text: str, stop: str) -> None:
    expected = max((n for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
    assert overlap(text, stop) == expected
