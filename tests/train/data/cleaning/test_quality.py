"""Encoding, quality rules, lists, boilerplate and harmful words: what each changes or leaves out, and what it spares."""

import json
import time
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from everlearn.errors import InvalidInput
from tests.train.data.cleaning.test_language import CHINESE, CODE
from train.data.cleaning.cleaner import Cleaner, Outcome
from train.data.cleaning.encoding import repaired
from train.data.cleaning.options import Encoding
from train.data.cleaning.quality import c4_lines, gopher
from train.data.cleaning.words import find_words
from train.data.examples import Text
from train.data.options import DataOptions
from train.data.prepare import prepare

PROSE = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8")
CHINESE_PROSE = (
    "北京是中华人民共和国的首都，也是全国的政治中心和文化中心。城市的历史已经超过三千年，有许多著名的古迹，例如故宫、天坛和颐和园。\n"
    "每年都有很多游客从世界各地来到这里参观，他们在这座城市里可以看到古老的建筑和现代的高楼。秋天是一年中最好的季节，天气晴朗，不冷也不热。\n"
    "我小时候住在城南的一条胡同里，邻居们都互相认识，晚上大家坐在门口聊天，孩子们在树下玩游戏，直到天黑才回家吃饭。\n"
)
CHINESE_STORY = (
    "爷爷年轻的时候是一个木匠，他的手很巧，村里谁家的桌椅坏了，都会来找他修理。他从来不收钱，只要一杯热茶就够了。\n"
    "有一年冬天下了很大的雪，山路都被埋住了。邻村的孩子发高烧，爷爷背着药箱走了整整一夜，终于在天亮以前赶到。\n"
    "后来那个孩子长大成了医生，每到过年都会回来看望他，两个人坐在火炉旁边说起从前，总是笑得合不拢嘴。\n"
)


def clean(text: str, **groups: object) -> Outcome:
    return Cleaner(DataOptions.model_validate(groups)).clean(Text(text))


def kept(text: str, **groups: object) -> str | None:
    example = clean(text, **groups).example
    return example.text if isinstance(example, Text) else None


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("It\u00e2\u0080\u0099s na\u00c3\u00afve", "It\u2019s na\u00efve"),
        ("voil\u00c3\u00a0 un caf\u00c3\u00a9", "voil\u00e0 un caf\u00e9"),
        ("The Mona Lisa doesn\u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2t have eyebrows.", "The Mona Lisa doesn\u2019t have eyebrows."),
        ("l\u2019\u00e9t\u00e9 \u00e0 S\u00e3o Paulo, \u00bfqu\u00e9? \u00abso\u00bb", "l\u2019\u00e9t\u00e9 \u00e0 S\u00e3o Paulo, \u00bfqu\u00e9? \u00abso\u00bb"),
        (CHINESE.strip(), CHINESE.strip()),
    ],
)  # fmt: skip
def test_texts_read_by_a_wrong_encoding_are_repaired_and_right_ones_stay(broken: str, whole: str) -> None:
    assert kept(f"{broken}\nA second line.", encoding=True, min_chars=1) == f"{whole}\nA second line."


def test_repairs_are_counted_and_code_is_spared() -> None:
    broken = "caf\u00c3\u00a9"
    text = f"Un {broken} noir.\n```\nx = '{broken}'\n```\nAnd `{broken}` in line.\n    y = '{broken}'\nEnd.\n"
    done = clean(text, encoding=True)
    assert isinstance(done.example, Text)
    assert done.example.text == text.replace(f"Un {broken}", "Un caf\u00e9", 1)
    assert done.changes["encoding_repaired"] == len(f"Un {broken} noir.")
    program = f"def f(x):\n    return x == '{broken}'\n\nprint(f('{broken}'))\n"
    assert kept(program, encoding=True) == program


def test_unicode_forms_are_an_option_that_spares_code() -> None:
    text = "\uff26ull \ufb01eld m\u00b2\n```\nx\u00b2 = '\ufb01'\n```\n`\u00b2` \u00b2"
    changes: Counter[str] = Counter()
    made = repaired(text, Encoding(form="NFKC"), changes)
    assert made == "Full field m2\n```\nx\u00b2 = '\ufb01'\n```\n`\u00b2` 2" and changes["unicode_form"] == 17
    assert repaired(text, Encoding(), changes) == text


GOPHER = {"quality": {"rules": ["gopher"]}}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PROSE[4000:7000], None),
        (CHINESE_PROSE, None),
        ("Too few words to say anything.", "gopher_words"),
        ("今天天气很好，我们去公园。", "gopher_words"),
        ("a b c d e f g h i j " * 10, "gopher_word_length"),
        ("the street # leads that other way " * 20, "gopher_symbols"),
        ("\n".join(f"- the article number {n} is that of {n * n} other readers" for n in range(20)), "gopher_bullets"),
        ("\n".join(f"the article number {n} has {n * n} readers ... that" for n in range(20)), "gopher_symbols"),
        ("\n".join(f"the article with the number {n} is to be read and of some great use to {n * n} more readers ..." for n in range(20)), "gopher_ellipses"),
        ("\n".join(f"{n} {n * n} {n * 3} 12345 678 the and" for n in range(100, 130)), "gopher_letters"),
        (" ".join(f"Wort{n % 7}er stehen hier{n} ohne jedes Beispiel{n * n}" for n in range(30)), "gopher_common_words"),
        ("The same line of the text and that of it.\n" * 12, "gopher_repeated_lines"),
        (PROSE[4000:4700].replace("\n", " ") + " and " + PROSE[4000:4700].replace("\n", " "), "gopher_repeated_phrases"),
        (CHINESE_PROSE.replace("\n", "") + "又" + CHINESE_PROSE.replace("\n", ""), "gopher_repeated_phrases"),
    ],
)  # fmt: skip
def test_each_of_gophers_rules_leaves_out_what_it_is_for(text: str, rule: str | None) -> None:
    assert gopher(text, find_words(text)) == rule


def test_c4_keeps_sentences_in_both_languages() -> None:
    lines = [
        "This line is a whole sentence that ends.",
        "Home | About | Contact us today",
        "Too short.",
        "Please enable JavaScript to see all of this page.",
        "We use cookies, as our cookie policy says in detail.",
        "这一行是一个完整的句子，应该保留下来。",
        "首页 关于我们 联系方式",
        "请阅读我们的隐私政策，然后再继续使用。",
        "“他说他明天一定会来北京看望我们。”",
    ]
    assert c4_lines("\n".join(lines)).split("\n") == [lines[0], lines[5], lines[8]]
    options = {"quality": {"rules": ["c4"]}}
    three = "This line is a whole sentence that ends. So does this. And a third!"
    assert kept(three, **options) == three and kept(CHINESE_PROSE.strip(), **options) == CHINESE_PROSE.strip()
    assert clean("This is just one sentence of the page.", **options).rule == "c4_sentences"
    assert clean(three.replace("third", "{third}"), **options).rule == "c4_curly_bracket"
    assert clean(f"{three} Lorem ipsum dolor sit amet.", **options).rule == "c4_lorem_ipsum"


def test_lines_with_advertisements_listed_phrases_and_hosts_are_taken_out(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("# mine\nCall  our Experts\n加我好友\n", encoding="utf-8")
    (tmp_path / "urls.txt").write_text("ads.example\nhttps://spam.example.org/\n", encoding="utf-8")
    long = "He wrote how people say buy now in every shop of the town and nobody ever buys one thing there, which is "
    text = f"""The text of the page is about trees.
Subscribe to our newsletter!
call our experts, now
See https://www.ads.example/x?y for more
See https://example.org/x for more, and notads.example too
get it at http://spam.example.org
扫码关注我们
欢迎加我好友，一起学习
这棵树已经有三百年的历史了。
{long}prose and stays in the text of this page."""
    options = {
        "quality": {"advertisements": True, "lines": tmp_path / "lines.txt", "urls": [tmp_path / "urls.txt"]}
    }
    made = (kept(text, **options) or "").split("\n")
    assert made == [text.split("\n")[at] for at in (0, 4, 8, 9)]


def test_a_word_list_leaves_out_texts_in_both_languages_by_whole_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bad word\nkiller\n六合彩\n", encoding="utf-8")
    options = {"harmful": {"words": tmp_path / "words.txt"}}
    assert clean("There is a BAD, word in this text.", **options).rule == "harmful_words"
    assert clean("昨天他去买了六合彩，没有中奖。", **options).rule == "harmful_words"
    assert clean("painkillers and a badword are other words", **options).rule is None
    assert clean("合六彩不是那个词，所以应该保留。", **options).rule is None
    mild = {"harmful": {"words": tmp_path / "words.txt", "max_share": 0.05}}
    assert clean("the killer whale lives in the sea " + "and it eats fish " * 10, **mild).rule is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# nothing\n", r"words\.txt: has no entry"), (b"ok\n\xff\n", r"words\.txt:2: is not UTF-8")],
)
def test_a_list_that_cannot_be_read_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        Cleaner(DataOptions.model_validate({"harmful": {"words": tmp_path / "words.txt"}}))


def test_lines_that_many_documents_have_are_taken_out_and_code_and_headings_stay(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    banner, footer = "We value your privacy on this site", "Copyright 2024 by the Example Company"
    texts = [
        f"{banner}\n## Installation of it\n{PROSE[at : at + 600].strip()}\n    return the_value(x)\n{footer} "
        for at in range(0, 12_000, 1000)
    ]
    copies = [f"{PROSE[20_000:20_400]}\nCopy {n} of it." for n in range(12)]
    records = [
        *texts,
        *[texts[0]] * 5,
        *copies,
        PROSE[30_000:30_500] + "\nA line that only three texts have.\n",
    ]
    files = []
    for name, part in (("a", records[:10]), ("b", records[10:])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    options = DataOptions.model_validate({"held_fraction": 0, "boilerplate": {"max_documents": 10}})
    card = prepare(files, tokenizer_dir, tmp_path / "out", options)
    made = [json.loads(line)["text"] for line in (tmp_path / "out" / "train.jsonl").open()]
    assert not any(banner in text or footer in text for text in made)
    assert sum("## Installation of it\n" in text and "    return the_value(x)" in text for text in made) == 12
    assert sum(PROSE[20_000:20_400] in text for text in made) == 1, "of copies one is kept, whole"
    assert card.changed["boilerplate_lines"].examples == 17 and card.dropped["exact_duplicates"] == 5
    assert card.read == 30 == card.kept + sum(card.dropped.values())
    few = DataOptions.model_validate({"held_fraction": 0, "boilerplate": {"max_documents": 20}})
    again = prepare(files, tokenizer_dir, tmp_path / "few", few)
    assert not again.changed


def test_a_chinese_corpus_loses_nothing_to_any_filter(tokenizer_dir: Path, tmp_path: Path) -> None:
    texts = [CHINESE_PROSE, CHINESE_STORY, f"{CHINESE}\n{CHINESE_STORY[:140]}"]
    file = tmp_path / "zh.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {
        "held_fraction": 0, "near_duplicates": None, "encoding": {"form": "NFKC"}, "languages": {"keep": ["zh"]},
        "quality": {"rules": ["gopher", "c4"], "advertisements": True}, "boilerplate": True, "personal": True,
    }  # fmt: skip
    card = prepare([file], tokenizer_dir, tmp_path / "out", DataOptions.model_validate(options))
    assert card.kept == 3 and not card.masked and card.languages == {"zh": 3}


def test_hostile_texts_take_no_longer_than_their_length() -> None:
    options = {"encoding": {"form": "NFKC"}, "languages": {"keep": "en"}, "quality": {"rules": ["gopher", "c4"], "advertisements": True}}  # fmt: skip
    cleaner = Cleaner(
        DataOptions.model_validate({**options, "max_repeated_chars": 1, "max_repeated_lines": 1})
    )
    for part in (
        "a",
        "a ",
        "a\n",
        ".",
        "`",
        "```\n",
        "\u00c3",
        "\u00e2\u0080",
        "www.",
        "https://a",
        "a.b ",
        "。",
        "中",
        CODE,
    ):
        text = part * (2**18 // len(part))
        begin = time.process_time()
        cleaner.clean(Text(text))
        assert time.process_time() - begin < 20, part
