"""Keys, tokens and passwords: by the forms that services give theirs, and by what they are assigned to."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from train.data.cleaning.personal.span import Span

FORMS = tuple(
    (hint, re.compile(rf"(?<![A-Za-z0-9_]){pattern}"))
    for hint, pattern in (
        ("AKIA", "AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("ASIA", "ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("ghp_", "ghp_[A-Za-z0-9]{36,255}"),
        ("gho_", "gho_[A-Za-z0-9]{36,255}"),
        ("ghu_", "ghu_[A-Za-z0-9]{36,255}"),
        ("ghs_", "ghs_[A-Za-z0-9]{36,255}"),
        ("ghr_", "ghr_[A-Za-z0-9]{36,255}"),
        ("github_pat_", "github_pat_[A-Za-z0-9_]{36,255}"),
        ("glpat-", "glpat-[A-Za-z0-9_-]{20,64}"),
        ("xox", "xox[abeoprs]-[A-Za-z0-9-]{10,250}"),
        ("hooks.slack.com/", r"hooks\.slack\.com/services/[A-Za-z0-9/_-]{20,120}"),
        ("AIza", "AIza[A-Za-z0-9_-]{35}"),
        ("sk-", "sk-[A-Za-z0-9_-]{20,250}"),
        ("k_live_", "[sr]k_live_[A-Za-z0-9]{16,128}"),
        ("k_test_", "[sr]k_test_[A-Za-z0-9]{16,128}"),
        ("hf_", "hf_[A-Za-z0-9]{30,64}(?![A-Za-z0-9])"),
        ("npm_", "npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
        ("pypi-", "pypi-[A-Za-z0-9_-]{50,250}"),
        ("eyJ", r"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{8,2000}"),
    )
)
"""What each begins with, and its form. JWT: RFC 7519."""
BLOCK = "-----BEGIN "
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
MAX_BLOCK = 20_000

NAMES = ("key", "token", "secret", "passw", "pwd", "credential")
ASSIGNED = re.compile(r"""(?::|=>?)[ \t]{0,4}["'`]?([A-Za-z0-9+/_~!@#$%^&*-]{8,512}={0,2})""")
KEY_NAME = re.compile(
    r"(?:(?:api|access|secret|auth|private|client|encryption|account|session|service|master|signing)[_. -]?)"
    r"(?:key|token|secret)(?:[_. -]?(?:id|key))?[\"'`\]]{0,2}\s{0,2}$|\b(?:token|secret|credentials?)[\"'`\]]{0,2}\s{0,2}$"
)
PASSWORD_NAME = re.compile(r"(?:password|passwd|passphrase|pwd)[\"'`\]]{0,2}\s{0,2}$")
BEARER = re.compile(r"earer[ \t]{1,4}([A-Za-z0-9._~+/-]{20,2000}={0,2})")
IN_URL = re.compile(r"://[A-Za-z0-9._%+-]{1,64}:([^\s:@/\"'<>]{1,128})@")
MIN_KEY, MIN_BITS = 16, 3.0
"""A key's length, and the bits per character of its own distribution: words have fewer in so few characters."""
NAME_CHARS = 32


def keys(text: str) -> Iterator[Span]:
    """Keys of private cryptography, tokens by their form, and what is assigned to a name such as ``api_key``."""
    if BLOCK in text:
        for begin in PRIVATE_KEY.finditer(text):
            end = KEY_END.search(text, begin.end(), begin.end() + MAX_BLOCK)
            yield Span(begin.start(), end.end() if end else begin.end(), "key")
    for hint, form in FORMS:
        if hint in text:
            for found in form.finditer(text):
                yield Span(*found.span(), "key")
    if "earer" in text:
        for found in BEARER.finditer(text):
            if _is_random(found[1]):
                yield Span(*found.span(1), "key")
    if "://" in text and "@" in text:
        for found in IN_URL.finditer(text):
            yield Span(*found.span(1), "key")
    low = text.lower()
    if any(name in low for name in NAMES):
        yield from _assigned(text)


def _assigned(text: str) -> Iterator[Span]:
    for found in ASSIGNED.finditer(text):
        name = text[max(0, found.start() - NAME_CHARS) : found.start()].lower()
        value = found[1]
        is_key = len(value) >= MIN_KEY and KEY_NAME.search(name) and _is_random(value)
        if is_key or (PASSWORD_NAME.search(name) and _has_letter_and_digit(value)):
            yield Span(*found.span(1), "key")


def _is_random(value: str) -> bool:
    counts = Counter(value)
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return bits >= MIN_BITS and _has_letter_and_digit(value)


def _has_letter_and_digit(value: str) -> bool:
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))
