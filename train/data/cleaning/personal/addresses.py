"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from train.data.cleaning.personal.span import Span

LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-'")
MAX_LOCAL = 64
AT = re.compile(r"@|[\[({]\s?(?:at|AT|@)\s?[\])}]")
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"(?:{LABEL}\.){{1,8}}([A-Za-z]{{2,24}})(?![A-Za-z0-9-])")
DOT = r"(?:\.|\s?[\[({]\s?(?:dot|DOT|\.)\s?[\])}]\s?|\s(?:dot|DOT)\s)"
SPELT_DOMAIN = re.compile(rf"\s?(?:{LABEL}{DOT}){{1,8}}([A-Za-z]{{2,24}})(?![A-Za-z0-9-])")
NO_DOMAIN = re.compile(r"[0-9]{1,9}\.[0-9]")
"""As in lodash@4.17.21: a version."""
FILES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "js",
        "mjs",
        "ts",
        "css",
        "scss",
        "html",
        "htm",
        "json",
        "xml",
        "yml",
        "yaml",
        "md",
        "txt",
    ]
)
"""What pictures for two densities (icon@2x.png) and pinned files end in."""
NOBODY = frozenset({"git", "hg", "svn"})

IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
VERSION_BEFORE = re.compile(
    r"(?:[vV]|[vV]er\.?|[vV]ersions?|[rR]elease|[rR]evisions?|[rR]ev\.?|[bB]uild|版本|[A-Za-z]/)[ :=]{0,2}$"
)
IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}")


def emails(text: str) -> Iterator[Span]:
    """Addresses with a domain of two labels or more, also as name (at) host (dot) org."""
    if "@" not in text and "at" not in text and "AT" not in text:
        return
    last = 0
    for at in AT.finditer(text):
        plain = at[0] == "@"
        end = at.start() - (not plain and text[at.start() - 1 : at.start()] == " ")
        start, first = end, max(last, end - MAX_LOCAL)
        while start > first and text[start - 1] in LOCAL:
            start -= 1
        while start < end and text[start] in ".-'%+":
            start += 1
        if start == end:
            continue
        domain = (DOMAIN if plain else SPELT_DOMAIN).match(text, at.end())
        if (
            domain
            and domain[1].lower() not in FILES
            and text[start:end] not in NOBODY
            and not NO_DOMAIN.match(text, at.end())
        ):
            last = domain.end()
            yield Span(start, last, "email")


def ip_addresses(text: str) -> Iterator[Span]:
    """Those that are reachable from anywhere: loopback, private and reserved ones name no person. A version of four
    numbers is none."""
    for found in IPV4.finditer(text) if text.count(".") >= 3 else ():
        start, end = found.span()
        before, after = text[max(0, start - 12) : start], text[end : end + 2]
        if (
            before[-1:].isalnum()
            or before[-1:] in ("_", ".", "-")
            or after[:1].isalnum()
            or after[:1] in ("_", "-")
        ):
            continue
        if (after[:1] == "." and after[1:].isalnum()) or VERSION_BEFORE.search(before):
            continue
        if _is_global(found[0]):
            yield Span(start, end, "ip")
    for found in IPV6.finditer(text) if text.count(":") >= 2 else ():
        start, value = found.start(), found[0].rstrip(":")
        before, after = text[start - 1 : start], text[start + len(value) : start + len(value) + 1]
        if (
            not (before.isalnum() or after.isalnum() or before == ":")
            and value.count(":") >= 2
            and _is_global(value)
        ):
            yield Span(start, start + len(value), "ip")


def _is_global(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False
