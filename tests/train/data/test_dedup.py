"""What counts as the same text, and what cleaning changes or leaves out."""

import time
from importlib import resources

import numpy as np
import pytest

from train.data.card import DataOptions
from train.data.clean import cleaned, why_dropped
from train.data.dedup import BANDS, PERMUTATIONS, near_duplicates, signature
from train.data.examples import Chat, RawExample, Text

PROSE = (resources.files("train") / "held" / "jargon.txt").read_text(encoding="utf-8")
OPTIONS = DataOptions()


def shingles(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return set(zip(*(words[n:] for n in range(5)), strict=False))


@pytest.mark.parametrize("changed", [50, 200, 500, 900])
def test_signatures_estimate_the_jaccard_similarity_of_five_word_shingles(changed: int) -> None:
    words = PROSE.split()[:1500]
    other = [*words[: 1500 - changed], *PROSE.split()[3000 : 3000 + changed]]
    one, two = " ".join(words), " ".join(other)
    true = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
    pair = signature(one), signature(two)
    assert pair[0] is not None and pair[1] is not None
    assert abs((pair[0] == pair[1]).mean() - true) < 4 * np.sqrt(0.25 / PERMUTATIONS)


def test_case_punctuation_and_spaces_make_no_difference() -> None:
    text = PROSE[:2000]
    spaced = "  " + text.upper().replace(" ", " \n\t").replace(",", " -- ")
    assert np.array_equal(signature(text), signature(spaced))


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    poem = "床前明月光疑是地上霜举头望明月低头思故乡春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
    one, two = signature(poem), signature(poem.replace("霜", "雪"))
    assert one is not None and two is not None
    assert 0.5 < (one == two).mean() < 1


def test_short_texts_have_no_signature() -> None:
    assert signature("") is None and signature("What is 2 + 2? It is 4.") is None


def test_similar_texts_leave_one_and_which_one_does_not_depend_on_the_sequence() -> None:
    blocks = [PROSE[at : at + 1500] for at in range(0, 30_000, 1500)]
    texts = [
        *blocks,
        *(block.replace("the", "a", 1) for block in blocks[:10]),
        *(f"x {b}" for b in blocks[:5]),
    ]
    signatures = np.array([signature(text) for text in texts])
    rank = np.random.default_rng(0).permutation(len(texts))
    duplicate = near_duplicates(signatures, np.argsort(rank), 0.8)
    assert duplicate.sum() == 15
    moved = np.random.default_rng(1).permutation(len(texts))
    assert np.array_equal(near_duplicates(signatures[moved], np.argsort(rank[moved]), 0.8), duplicate[moved])
    assert not near_duplicates(signatures, np.argsort(rank), 1.0)[np.argmin(rank)]


def test_a_flood_of_the_same_text_takes_no_more_than_its_number() -> None:
    signatures = np.tile(np.arange(PERMUTATIONS, dtype=np.uint32), (20_000, 1))
    signatures[:, -1] = np.arange(20_000)  # all in one bucket of 15 bands, each with a last number of its own
    begin = time.process_time()
    duplicate = near_duplicates(signatures, np.arange(20_000), 0.8)
    assert duplicate.sum() == 19_999 and not duplicate[0]
    assert time.process_time() - begin < 60 and BANDS == 16


def test_cleaning_keeps_words_and_takes_out_what_no_reader_sees() -> None:
    text = cleaned(Text("\n\x0ccafe\u0301  \r\n\x1b[1mbold\x1b[0m\tend \r\n\n\n", "a.txt:1"))
    assert text == Text("caf\u00e9\n[1mbold[0m\tend") and text.source == "a.txt:1"
    chat = Chat(
        [{"role": "user", "content": " a\x00\r\nb "}, {"role": "assistant", "content": "  e\u0301  "}]
    )
    assert [message["content"] for message in cleaned(chat).messages] == [" a\nb ", "  \u00e9  "]  # type: ignore[union-attr]


def test_a_megabyte_of_spaces_is_cleaned_in_no_time() -> None:
    begin = time.process_time()
    assert cleaned(Text("a" + " " * 2**20 + "b")).text.endswith("b")  # type: ignore[union-attr]
    why_dropped(Text("= " * 2**19), OPTIONS)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (Text(PROSE[:5000]), None),
        (Text(" \n "), "empty"),
        (Text("short"), "too_short"),
        (Text("long " * 10**6), "too_long"),
        (Text("buy now\n" * 50), "repeated_lines"),
        (Text("a" * 400 + " word" * 20), "repeated_chars"),
        (Text("Chapter One\n" + "=" * 30 + "\nSome words that make a text, and more of them."), None),
        (Text("\n".join(f"    case {n}:\n      break;" for n in range(20))), None),
        (Chat([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]), None),
        (Chat([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "\x07"}]), "empty"),
    ],
)
def test_why_an_example_is_left_out(raw: RawExample, reason: str | None) -> None:
    assert why_dropped(cleaned(raw), OPTIONS) == reason
