"""What counts as the same text, and what cleaning changes or leaves out."""

import json
import time
from collections import Counter
from importlib import resources

import numpy as np
import pytest

from train.data.cleaning.clean import cleaned, why_dropped
from train.data.cleaning.near_duplicates import BANDS, PERMUTATIONS, near_duplicates, signature
from train.data.examples import Chat, RawExample, Text
from train.data.options import DataOptions

PROSE = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8")
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


def test_cleaning_takes_out_what_no_reader_sees_and_leaves_the_rest_as_it_is() -> None:
    text = cleaned(Text("\n  cafe\u0301  \r\n\x1b[1mbold\x1b[0m\tend \r\n\n\n", "a.txt:1"))
    assert text == Text("\n  cafe\u0301  \n[1mbold[0m\tend \n\n\n") and text.source == "a.txt:1"
    chat = Chat(
        [{"role": "user", "content": " a\x00\r\nb "}, {"role": "assistant", "content": "  e\u0301  "}]
    )
    assert [message["content"] for message in cleaned(chat).messages] == [" a\nb ", "  e\u0301  "]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "end", ["\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_whatever_ends_a_line_or_page_becomes_a_line_break(end: str) -> None:
    changes: Counter[str] = Counter()
    assert cleaned(Text(f"end of page{end}Next"), OPTIONS, changes) == Text("end of page\nNext")
    assert +changes == {"line_ends": 1}


KEPT = {
    "Markdown's line breaks": "One line  \nand its next.  \n\n    code\n",
    "a diff": "--- a\n+++ b\n@@ -1,3 +1,3 @@\n context\n \n-old \n+new\n",
    "what NFC rewrites": "\u037e \u1fef \u2126 cafe\u0301 \u0958",
    "spaces of many kinds": "a\u00a0b\u3000c\td \u200d\u200c",
    "Python": "def f():\n\treturn {\n\t}  \n",
}


@pytest.mark.parametrize("name", KEPT)
def test_code_and_markdown_stay_as_they_are(name: str) -> None:
    changes: Counter[str] = Counter()
    assert cleaned(Text(KEPT[name]), OPTIONS, changes) == Text(KEPT[name]) and not +changes


def test_normalizing_and_stripping_are_options_and_counted() -> None:
    changes: Counter[str] = Counter()
    options = DataOptions(normalize=True, strip=True)
    text = cleaned(Text("\ncafe\u0301 \u037e\u1fef  \nend\n"), options, changes)
    assert text == Text("caf\u00e9 ;`\nend")
    assert +changes == {"normalized": 2, "stripped": 4}


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
        (Text("今天天气很好。"), None),
        (Text("今日は晴れです"), None),
        (Text("สวัสดีครับ"), None),
        (Text("안녕하세요"), None),
        (Text("好"), "too_short"),
        (Text(json.dumps([{"type": "user", "active": True, "n": n} for n in range(40)], indent=2)), None),
        (Text("\n".join(["if (x) {", "{", "}", "}", "};", "});"] * 30)), None),
        (Text("}" * 200 + "\n" + "{" * 200 + " a block of many braces"), None),
        (Text("| a | b |\n|" + "-" * 60 + "|" + "-" * 60 + "|\n| 1 | 2 |"), None),
        (Text("\n".join(f"- name: web{n}\n  image: nginx\n  restart: always" for n in range(20))), None),
        (Text("\n".join(f"class A{n}\nattr_reader :a{n}\ndef a\n  {n}\nend\nend" for n in range(20))), None),
        (Text("\n".join(f"function f{n}(a)\nif a then\nreturn {n}\nend\nend\nend" for n in range(20))), None),
        (Text("\n".join(f"f{n}:\npush rbp\nmov rbp, rsp\nnop\nnop\npop rbp\nret" for n in range(20))), None),
        (Text("\n".join(["start:", *["nop"] * 60, "ret"])), None),
        (Text("\n".join(f"if [ -f {n} ]; then\necho {n}\nelse\nexit\nfi\ndone" for n in range(20))), None),
        (Text("spam\n" * 40), "repeated_lines"),
        (Text("Read this:\n" + "you must buy it now\n" * 40), "repeated_lines"),
        (Text("哈" * 400 + "我们一起去公园"), "repeated_chars"),
        (Text("现在购买吧朋友\n" * 40), "repeated_lines"),
    ],
)
def test_why_an_example_is_left_out(raw: RawExample, reason: str | None) -> None:
    assert why_dropped(cleaned(raw), OPTIONS) == reason
