"""Numbers that are a person's: phones, payment cards, bank accounts, identity numbers.

Every one is checked as its issuer does, where there is a check: cards by Luhn's digit (ISO/IEC 7812), IBAN modulo 97
(ISO 13616), China's identity numbers by date, place and check digit (GB 11643), and the SSN by the numbers that were
never given. Numbers with a decimal point, dates, versions and longer identifiers are none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from train.data.cleaning.options import PersonalKind
from train.data.cleaning.personal.span import Span

RUN = re.compile(r"[0-9](?:[ .()/\u2010-\u2015-]{0,2}[0-9]){6,}")
"""Seven digits or more with at most two separators between each: only here is looked closer."""
NOT_IN_WORD = r"(?<![\w.])(?<!\w[-/])"

CARD = re.compile(
    rf"{NOT_IN_WORD}(?:[0-9]{{13,19}}|[0-9]{{4}}([ -])[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,7}}"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?!\w)(?!\.[0-9])(?!-[0-9])"
)
ISSUERS = re.compile(
    r"(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}|35(?:2[89]|[3-8][0-9])[0-9]{12}"
    r"|62[0-9]{14,17})"
)
"""Visa, Mastercard, American Express, Diners Club, Discover, JCB, UnionPay: their first digits and lengths."""

CHINESE_ID = re.compile(r"(?<![0-9A-Za-z])[1-8][0-9]{16}[0-9Xx](?![0-9A-Za-z])")
CHINESE_PLACES = frozenset(
    [
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ]
)
CHINESE_WEIGHTS = tuple(pow(2, 17 - place, 11) for place in range(17))
SSN = re.compile(rf"{NOT_IN_WORD}([0-9]{{3}})([ -])([0-9]{{2}})\2([0-9]{{4}})(?!\w)(?!-[0-9])")
NEVER_GIVEN = frozenset({"078-05-1120", "219-09-9999"})
"""Printed in advertisements."""
SSN_NAMED = re.compile(r"(?:ssn|social security(?: number| no\.?)?)\W{0,4}(?:is )?$", re.IGNORECASE)
NINE = re.compile(r"(?<![\w.])([0-9]{3})([0-9]{2})([0-9]{4})(?![\w])")

IBAN = re.compile(r"[A-Z]{2}[0-9]{2}(?= ?[A-Z0-9])")
IBAN_LENGTHS = {
    each[:2]: int(each[2:])
    for each in [
        "AD24",
        "AE23",
        "AL28",
        "AT20",
        "AZ28",
        "BA20",
        "BE16",
        "BG22",
        "BH22",
        "BI27",
        "BR29",
        "BY28",
        "CH21",
        "CR22",
        "CY28",
        "CZ24",
        "DE22",
        "DJ27",
        "DK18",
        "DO28",
        "EE20",
        "EG29",
        "ES24",
        "FI18",
        "FK18",
        "FO18",
        "FR27",
        "GB22",
        "GE22",
        "GI23",
        "GL18",
        "GR27",
        "GT28",
        "HR21",
        "HU28",
        "IE22",
        "IL23",
        "IQ23",
        "IS26",
        "IT27",
        "JO30",
        "KW30",
        "KZ20",
        "LB28",
        "LC32",
        "LI21",
        "LT20",
        "LU20",
        "LV21",
        "LY25",
        "MC27",
        "MD24",
        "ME22",
        "MK19",
        "MN20",
        "MR27",
        "MT31",
        "MU30",
        "NI28",
        "NL18",
        "NO15",
        "OM23",
        "PK24",
        "PL28",
        "PS29",
        "PT25",
        "QA29",
        "RO24",
        "RS22",
        "RU33",
        "SA24",
        "SC31",
        "SD18",
        "SE24",
        "SI19",
        "SK24",
        "SM27",
        "SO23",
        "ST25",
        "SV28",
        "TL23",
        "TN24",
        "TR26",
        "UA29",
        "VA22",
        "VG24",
        "XK20",
        "YE30",
    ]
}
IBAN_RESTS = {
    length: re.compile(rf"(?: ?[A-Z0-9]){{{length - 4}}}(?![A-Za-z0-9])")
    for length in {*IBAN_LENGTHS.values()}
}

PHONES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w+])\+[1-9](?:[ .()/\u2010-\u2015-]{0,3}[0-9]){7,14}(?![0-9])",
        r"(?<![\w.$€£])(?<!\w[-/])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-./\u2010-\u2013])[2-9][0-9]{2}[-. \u2010-\u2013][0-9]{4}(?![\w-])(?!\.[0-9])",
        r"(?<![0-9A-Za-z_.-])(?:86[ -]?)?1(?:3[0-9]|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])([ -]?)[0-9]{4}\1[0-9]{4}(?![0-9A-Za-z_])(?!\.[0-9])",
        r"(?<![0-9A-Za-z_.-])\(?0(?:10|2[0-9]|[3-9][0-9]{2})\)?[ -][1-9][0-9]{6,7}(?:-[0-9]{1,6})?(?![0-9A-Za-z_-])(?!\.[0-9])",
        r"(?<![0-9A-Za-z_.-])[48]00-[0-9]{3}-[0-9]{4}(?![0-9A-Za-z_-])",
        r"(?<![\w.,$€£-])(?<![0-9][ /])\(?0[1-9][0-9]{0,3}\)?[ /-][0-9]{2,8}(?:[ -][0-9]{2,4}){0,4}(?![\w-])(?![.,/:][0-9])(?! [0-9])",
    )
)
"""As E.164 writes them; North America; China's mobiles, its area codes and its 400 numbers; Europe's, with a 0 first."""
NAMED = re.compile(
    r"(?:\b(?:tel|telephone|phone|call|fax|mobile|cell|ph|voice|whatsapp|text|sms|dial)|电话|手机|传真|热线|联系方式|微信)"
    r"(?: us| me| toll[- ]free| number| no| at| today| now| on| is)*[^0-9A-Za-z]{0,6}$",
    re.IGNORECASE,
)
NAMED_CHARS = 40
NAMED_NUMBER = re.compile(r"\(?[0-9](?:[ .()/\u2010-\u2015-]{0,2}[0-9]){6,14}(?![0-9])(?!\.[0-9])")
DATE = re.compile(
    r"(?:[0-9]{4}[-/. ][0-9]{1,2}[-/. ][0-9]{1,2}|[0-9]{1,2}[-/. ][0-9]{1,2}[-/. ](?:19|20)[0-9]{2})(?![0-9])"
)
DECIMAL = re.compile(r"\+?[0-9]+\.[0-9]+")


def numbers(text: str, kinds: frozenset[PersonalKind]) -> Iterator[Span]:
    """Of the kinds phone, card and id."""
    for run in RUN.finditer(text):
        start, end = max(0, run.start() - 3), min(len(text), run.end() + 8)
        if "card" in kinds:
            for found in CARD.finditer(text, start, end):
                if _is_card(found[0]):
                    yield Span(*found.span(), "card")
        if "id" in kinds:
            yield from _identities(text, start, end)
        if "phone" in kinds:
            yield from _phones(text, start, end, run)


def ibans(text: str) -> Iterator[Span]:
    """Of the countries that have them, in one piece or in groups."""
    for head in IBAN.finditer(text):
        start, length = head.start(), IBAN_LENGTHS.get(head[0][:2])
        rest = IBAN_RESTS[length].match(text, head.end()) if length else None
        if not rest or text[start - 1 : start].isalnum():
            continue
        value = rest[0].replace(" ", "") + head[0]
        if int("".join(str(int(char, 36)) for char in value)) % 97 == 1:
            yield Span(start, rest.end(), "iban")


def _is_card(value: str) -> bool:
    digits = value.replace(" ", "").replace("-", "")
    if not ISSUERS.fullmatch(digits):
        return False
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(each - 9 * (each > 9) for each in doubled)) % 10 == 0


def _identities(text: str, start: int, end: int) -> Iterator[Span]:
    for found in CHINESE_ID.finditer(text, start, end):
        if _is_chinese_id(found[0]):
            yield Span(*found.span(), "id")
    for found in SSN.finditer(text, start, end):
        if found[0].replace(" ", "-") not in NEVER_GIVEN and _is_ssn(found[1], found[3], found[4]):
            yield Span(*found.span(), "id")
    for found in NINE.finditer(text, start, end):
        if _is_ssn(found[1], found[2], found[3]) and SSN_NAMED.search(
            text, max(0, found.start() - NAMED_CHARS), found.start()
        ):
            yield Span(*found.span(), "id")


def _is_chinese_id(value: str) -> bool:
    if value[:2] not in CHINESE_PLACES:
        return False
    try:
        born = date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(value[:17], CHINESE_WEIGHTS, strict=True))
    return 1880 <= born.year <= 2100 and value[17].upper() == "10X98765432"[total % 11]


def _is_ssn(area: str, group: str, serial: str) -> bool:
    """Areas 000, 666 and from 900 on were never given, nor groups and serials of zeros."""
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _phones(text: str, start: int, end: int, run: re.Match[str]) -> Iterator[Span]:
    for pattern in PHONES:
        for found in pattern.finditer(text, start, end):
            if _is_phone(found[0]):
                yield Span(*found.span(), "phone")
    if NAMED.search(text, max(0, run.start() - NAMED_CHARS), run.start()):
        begin = run.start() - (text[run.start() - 1 : run.start()] == "(")
        found = NAMED_NUMBER.match(text, begin, end)
        if found and _is_phone(found[0]):
            yield Span(*found.span(), "phone")


def _is_phone(value: str) -> bool:
    digits = sum(map(str.isdigit, value))
    is_other = DATE.match(value) or DECIMAL.fullmatch(value) or SSN.fullmatch(value)
    return 7 <= digits <= 18 and not is_other
