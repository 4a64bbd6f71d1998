"""Personal data is masked by kind; what only looks like it is not; and no line makes a pattern slow."""

import json
import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.cleaning.cleaner import Cleaner
from train.data.cleaning.options import Personal
from train.data.cleaning.personal.mask import Mask, find
from train.data.examples import Chat, Text
from train.data.options import DataOptions

PERSONAL = [
    ("Write to jo.doe+news@mail.example.co.uk, please", "Write to [EMAIL], please"),
    ("jo (at) example (dot) org or jo [at] example dot org", "[EMAIL] or [EMAIL]"),
    ("联系邮箱zhang@qq.com。", "联系邮箱[EMAIL]。"),
    ("<a href='mailto:a_b@x.io'>", "<a href='mailto:[EMAIL]'>"),
    ("+1 415 555 2671, +44 20 7946 0958, +8613812345678", "[PHONE], [PHONE], [PHONE]"),
    ("(415) 555-2671 or 415-555-2671 or 1-800-555-0199", "[PHONE] or [PHONE] or [PHONE]"),
    ("Tel.: 555 0199, fax 2671 8890", "Tel.: [PHONE], fax [PHONE]"),
    ("手机13812345678，座机010-62345678", "手机[PHONE]，座机[PHONE]"),
    ("020 7946 0958 / 01 42 68 53 00", "[PHONE] / [PHONE]"),
    ("4111 1111 1111 1111, 5500-0000-0000-0004, 378282246310005", "[CARD], [CARD], [CARD]"),
    ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", "[IBAN] and [IBAN]"),
    ("身份证11010519491231002X号", "身份证[ID]号"),
    ("SSN 536-90-4399, or ssn: 536904399", "SSN [ID], or ssn: [ID]"),
    ("from 93.184.216.34 and [2001:4860:4860::8888]:80", "from [IP] and [[IP]]:80"),
    ("+8613812345678 020 7946 0958", "[PHONE] [PHONE]"),
    ("AKIAIOSFODNN7EXAMPLE ghp_" + "a1B2" * 9, "[KEY] [KEY]"),
    ("api_key = 'aB3dE5fG7hJ9kL1mN2'; password: hunter22", "api_key = '[KEY]'; password: [KEY]"),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.dozjgNryP4J3jVmN", "Bearer [KEY]"),
    ("postgres://app:s3cret@db.local/x", "postgres://app:[KEY]@db.local/x"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow==\n-----END RSA PRIVATE KEY-----\n", "[KEY]\n"),
]


@pytest.mark.parametrize(("text", "masked"), PERSONAL)
def test_personal_data_becomes_its_kind(text: str, masked: str) -> None:
    assert Mask(Personal()).text(text) == masked


NOT_PERSONAL = [
    "0.4111111111111111 and 4111111111111111.5, 3.14159265358979, -1.4155552671e10",
    "4111 1111 1111 1112, 1234 5678 9012 3456, order 20020822123456789",
    "DE88 3704 0044 0532 0130 00, XX89370400440532013001",
    "110105194912310021, 11010519491331002X, 991105194912310020",
    "666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 078-05-1120",
    "127.0.0.1, 10.1.2.3, 192.168.0.1, 0.0.0.0, v1.2.3.4, Chrome/120.0.0.1, 1.2.3.4.5, 300.1.1.1",
    "2002-08-22 10:20:30, 22.08.2002 1030, 20020822T102030Z, 01/02/2003 04",
    "lodash@4.17.21 icon@2x.png git@github.com:a/b @decorator user@host",
    "std::vector a::b 10:20:30 fe80::1 ::1",
    "ISBN 978-3-16-148410-0, 1.2.840.113549.1.1.11, 550e8400-e29b-41d4-a716-446655440000",
    "key = value_of_the_thing, token: the-next-token-please, password: required",
    "1,234,567,890 and 1 000 000 000 or 1029954000 or 1700000000000",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
]


@pytest.mark.parametrize("text", NOT_PERSONAL)
def test_floats_dates_versions_and_wrong_check_digits_stay(text: str) -> None:
    assert Mask(Personal()).text(text) == text


def test_random_floats_and_long_numbers_are_hardly_ever_personal() -> None:
    rng = random.Random(0)
    floats = " ".join(f"{rng.uniform(-1e6, 1e6)!r}" for _ in range(5000))
    assert find(floats) == []
    numbers = " ".join(str(rng.randrange(10**15, 10**16)) for _ in range(5000))
    assert len(find(numbers)) < 5000 * 0.03  # the issuers' first digits and Luhn's


def test_the_same_value_may_have_the_same_number_within_one_document() -> None:
    mask = Mask(Personal(consistent=True))
    assert mask.text("a@x.org b@x.org a@x.org 8.8.8.8") == "[EMAIL_1] [EMAIL_2] [EMAIL_1] [IP_1]"
    assert mask.counts == {"email": 3, "ip": 1}


def test_only_the_kinds_asked_for_are_masked() -> None:
    assert Mask(Personal(kinds=("card",))).text("a@x.org 4111111111111111") == "a@x.org [CARD]"


def test_conversations_are_masked_with_the_arguments_of_their_calls() -> None:
    call = {"name": "charge", "arguments": '{"card": 4111111111111111, "to": "a@x.org", "n": 12}'}
    chat = Chat(
        [
            {"role": "user", "content": "I am a@x.org"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "assistant", "content": "Done.", "reasoning_content": "a@x.org pays"},
        ]
    )
    done = Cleaner(DataOptions(personal=Personal())).clean(chat)
    assert isinstance(done.example, Chat) and done.masked == {"email": 3, "card": 1}
    user, caller, answer = done.example.messages
    assert user["content"] == "I am [EMAIL]" and answer["reasoning_content"] == "[EMAIL] pays"
    arguments = json.loads(caller["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"card": "[CARD]", "to": "[EMAIL]", "n": 12}
    assert chat.messages[0]["content"] == "I am a@x.org", "the example read is not changed"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([each for pair in PERSONAL for each in pair]) | st.text(max_size=20), max_size=6)
)
def test_masking_twice_is_masking_once_and_places_do_not_overlap(parts: list[str]) -> None:
    text = "\n".join(parts)
    places = find(text)
    assert all(one.end <= other.start for one, other in pairwise(places))
    assert all(0 <= each.start < each.end <= len(text) for each in places)
    once = Mask(Personal()).text(text)
    assert Mask(Personal()).text(once) == once


HOSTILE = [
    "1", "1 ", "1.", "1-", "(1", "+1", ":1", "a@", "@", "a.", "a@a.", "a[at]", "a@a[dot]", "2001:", "AB11", "DE89 3704 ",
    "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "key=", "api_key=aB3dE5fG7hJ9kL1mN2 ", "eyJ", "eyJaaaaaaaaaa.", "xoxb-",
    "sk-", "://a:b", "tel 1234567 ", "01 42 68 53 00 ", "4111 1111 1111 1111 ", "a@b.org ", "password:",
]  # fmt: skip


def test_no_line_of_a_megabyte_takes_longer_than_its_length() -> None:
    """A pattern that backtracks takes minutes or years for one of these."""
    for part in HOSTILE:
        line = part * (2**18 // len(part))
        begin = time.process_time()
        find(line)
        find("a@" + line)
        assert time.process_time() - begin < 15, part


def test_texts_are_masked_and_unchanged_ones_are_the_same() -> None:
    cleaner = Cleaner(DataOptions(personal=Personal()))
    text = Text("Nothing personal is in here.", "a.txt:1")
    assert cleaner.clean(text).example == text
