"""What is too long for an encoder and may be cut: the tokens that Hugging Face's truncation leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from everlearn.errors import InvalidInput
from serve.engines.context_bound import PROBE_CHARACTERS, Bound, ContextLengthExceeded
from serve.engines.onnx.encoders.model import Cut, EncoderModel

CONTEXT = 24
WORDS = [
    "the",
    "mill",
    "stand",
    "##s",
    "by",
    "river",
    "rate",
    "##s",
    "rose",
    "again",
    "rain",
    "where",
    "it",
    "always",
    "stood",
]
VOCAB = {token: at for at, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)])}


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordPiece(VOCAB, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCAB["[CLS]"]), ("[SEP]", VOCAB["[SEP]"])],
    )
    return made


class ReadingHalf(EncoderModel):
    """An encoder without its graph."""

    def __init__(self) -> None:
        self.tokenizer, self.context, self.places = tokenizer(), CONTEXT, False
        self.bound = Bound(self.tokenizer, {"model": {"type": "WordPiece"}}, 16, CONTEXT)


ENCODER = ReadingHalf()
texts = st.lists(st.sampled_from(["the", "mills", "stands", "river", "xyz"]), min_size=1, max_size=40)
joined = texts.map(" ".join)


@given(first=joined, second=st.none() | joined, tokens=st.integers(5, CONTEXT))
def test_a_text_or_pair_keeps_what_the_librarys_truncation_keeps(
    first: str, second: str | None, tokens: int
) -> None:
    like = tokenizer()
    like.enable_truncation(tokens, strategy="longest_first")
    wanted = like.encode(first, second) if second is not None else like.encode(first)
    (ours,) = ENCODER.encode([first if second is None else (first, second)], cut=Cut(tokens))
    assert (ours.ids, ours.types) == (wanted.ids, wanted.type_ids)


@given(first=joined.filter(lambda text: len(text.split()) < 6), second=joined, tokens=st.integers(1, 8))
def test_a_document_keeps_its_first_tokens(first: str, second: str, tokens: int) -> None:
    (ours,) = ENCODER.encode([(first, second)], cut=Cut(None, tokens))
    first_ids, second_ids = (
        ENCODER.tokenizer.encode(text, add_special_tokens=False).ids for text in (first, second)
    )
    cls, sep = VOCAB["[CLS]"], VOCAB["[SEP]"]
    assert ours.ids == [cls, *first_ids, sep, *second_ids[:tokens], sep]


def test_the_whole_context_is_asked_for_by_minus_one_and_without_it_long_texts_are_refused() -> None:
    long = "river " * 100
    (whole,) = ENCODER.encode([long], cut=Cut(-1))
    assert len(whole.ids) == CONTEXT and ENCODER.encode(["river"], cut=Cut(-1)) == ENCODER.encode(["river"])
    for cut in (None, Cut(None), Cut(None, None)):
        with pytest.raises(ContextLengthExceeded):
            ENCODER.encode([long], cut=cut)
    with pytest.raises(ContextLengthExceeded):  # a query is not cut where only documents may be
        ENCODER.encode([(long, "river")], cut=Cut(None, 3))


@pytest.mark.parametrize(("tokens", "why"), [(CONTEXT + 1, "context is 24"), (2, "at least 3 are needed")])
def test_a_number_that_cannot_be_is_refused(tokens: int, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        ENCODER.encode(["river"], cut=Cut(tokens))
    assert refused.value.param == "truncate_prompt_tokens"
    with pytest.raises(InvalidInput, match="at least 5"):
        ENCODER.encode([("river", "mill")], cut=Cut(4))


def test_of_an_endless_text_only_a_beginning_is_read() -> None:
    text = "river " * 2_000_000
    assert len(ENCODER.bound.beginning(text, CONTEXT)) == PROBE_CHARACTERS
    (ours,) = ENCODER.encode([text], cut=Cut(-1))
    assert len(ours.ids) == CONTEXT
    word = "x" * (PROBE_CHARACTERS + 9)  # one token, however long: the next words count
    (ours,) = ENCODER.encode([f"{word} the river"], cut=Cut(-1))
    assert ours.ids[1:-1] == [VOCAB["[UNK]"], VOCAB["the"], VOCAB["river"]]
