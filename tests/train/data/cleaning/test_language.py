"""Which language a text is in, and that nothing is lost for being short, code, or mixed."""

from importlib import resources

import pytest

from everlearn.errors import InvalidInput
from train.data.cleaning.language import UNDECIDED, LanguageFilter
from train.data.cleaning.options import Languages

ENGLISH = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8")[
    4000:7000
]
CHINESE = (
    "北京是中华人民共和国的首都，也是全国的政治中心和文化中心。城市的历史已经超过三千年，"
    "有许多著名的古迹，例如故宫、天坛和颐和园。每年都有很多游客从世界各地来到这里参观。\n"
)
CLASSICAL = "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？"
CANTONESE = "我係香港人，我鍾意食嘢，今日天氣好好，我哋一齊去行街啦。"
JAPANESE = "東京都は日本の首都であり、世界最大の都市の一つである。多くの人々が働いている。"
KOREAN = "서울은 대한민국의 수도이며 가장 큰 도시이다. 많은 사람들이 살고 있다."
GERMAN = (
    "Die Stadt liegt an einem großen Fluss, der im Sommer von vielen Menschen besucht wird. Am Abend sitzen sie "
    "gern am Ufer und sprechen über das Wetter, die Arbeit und die Kinder."
)
CODE = "for (int i = 0; i < n; ++i) {\n    a[i] = f(b[i], c[i]) * 2;\n    if (!a[i]) return -1;\n}\n" * 20

EN_ZH = LanguageFilter(Languages(keep=("en", "zh")))
ZH = LanguageFilter(Languages(keep=("zh",)))
EN = LanguageFilter(Languages(keep=("en",)))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"), (CHINESE, "zh"), (CHINESE[:14], "zh"), (CLASSICAL, "zh"), (CANTONESE, "zh"), (JAPANESE, "ja"),
        (KOREAN, "ko"), (GERMAN, "de"), (CODE, UNDECIDED), ("Hello, world!", UNDECIDED), ("42 1029 3.14 " * 60, UNDECIDED),
        ("", UNDECIDED),
    ],
)  # fmt: skip
def test_the_language_of_most_of_a_text_is_told(text: str, language: str) -> None:
    assert EN_ZH.judge(text)[0] == language


@pytest.mark.parametrize(
    "text", [CHINESE, CHINESE * 50, CHINESE[:10], CLASSICAL, CANTONESE, "今天", CHINESE + ENGLISH[:60]]
)
def test_nothing_chinese_is_lost_where_chinese_is_kept(text: str) -> None:
    assert ZH.judge(text)[1]


@pytest.mark.parametrize("text", [CODE, "Hello!", "1 2 3", "使用 Python 的 pandas library 读取 CSV file"])
def test_code_and_what_is_too_short_to_tell_is_kept(text: str) -> None:
    assert ZH.judge(text)[1] and EN.judge(text)[1]


def test_other_languages_are_left_out() -> None:
    assert not EN_ZH.judge(GERMAN)[1] and not EN_ZH.judge(JAPANESE)[1] and not EN_ZH.judge(KOREAN)[1]
    assert not ZH.judge(ENGLISH)[1] and not EN.judge(CHINESE * 3)[1]


def test_texts_in_two_languages_are_kept_where_both_are_and_else_by_the_larger_part() -> None:
    mixed = CHINESE * 20 + ENGLISH
    assert EN_ZH.judge(mixed)[1]
    assert not EN.judge(CHINESE * 30 + ENGLISH[:600])[1]
    assert EN.judge(CHINESE * 2 + ENGLISH * 2)[1]


def test_what_is_not_told_surely_is_kept() -> None:
    sure = LanguageFilter(Languages(keep=("zh",), min_probability=1.0))
    assert sure.judge(GERMAN) == (UNDECIDED, True)


def test_an_unknown_language_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"data\.languages\.keep: 'eng' .*did you mean"):
        LanguageFilter(Languages(keep=("eng",)))
