"""JSON of a request's body, refused where its shape alone would be expensive to parse."""

from codecs import BOM_UTF8
from typing import Any

import jiter

from everlearn.errors import InvalidInput

MAX_DEPTH = 64
MAX_CONTAINERS = 20_000
MAX_STRINGS = 20_000
MAX_VALUES = 300_000
MAX_ESCAPES = 1_500_000


def decode(body: bytes) -> Any:
    """The value. Raises InvalidInput for bad JSON or UTF-8, NaN, a key that is there twice, and a size beyond limits."""
    body = body.removeprefix(BOM_UTF8)  # some clients write one, and RFC 8259 lets a parser ignore it
    _check_structure(body)
    try:
        return jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidInput(f"The request body is not valid JSON: {str(error)[:300]}.") from None


def _all_but(kept: bytes) -> bytes:
    return bytes(set(range(256)) - set(kept))


_NOT_ESCAPES = _all_but(b"\\")
_NOT_STRUCTURE = _all_but(b'[]{},"')
_NOT_QUOTES = _all_but(b'"')
_NOT_COMMAS = _all_but(b",")
_NOT_OPENING = _all_but(b"[{")


def _check_structure(body: bytes) -> None:
    """Refuse bodies whose shape is expensive to parse, before parsing and in a few linear passes.

    `len(translate(None, all_but))` counts characters in time that does not depend on how dense they are.
    """
    if len(body) <= MAX_DEPTH:
        return
    escapes = len(body.translate(None, _NOT_ESCAPES))
    _at_most(MAX_ESCAPES, escapes, "backslashes")
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if escapes else body
    structure = bare.translate(None, _NOT_STRUCTURE)
    _at_most(MAX_STRINGS, len(structure.translate(None, _NOT_QUOTES)) // 2, "strings")
    outside = b"".join(structure.split(b'"')[::2])
    _at_most(MAX_VALUES, len(outside.translate(None, _NOT_COMMAS)), "values")
    brackets = outside.translate(None, b",")
    opening = len(brackets.translate(None, _NOT_OPENING))
    _at_most(MAX_CONTAINERS, opening, "objects and arrays")
    if 2 * opening == len(brackets) and _deeper_than(MAX_DEPTH, brackets):
        raise InvalidInput(f"The request body is nested more than {MAX_DEPTH} levels deep.")


def _at_most(limit: int, count: int, what: str) -> None:
    if count > limit:
        raise InvalidInput(f"The request body holds more than {limit} {what}.")


def _deeper_than(limit: int, brackets: bytes) -> bool:
    """Each round takes the innermost pairs away, so balanced brackets vanish within their depth."""
    for _ in range(limit):
        if not brackets:
            break
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    return bool(brackets)
