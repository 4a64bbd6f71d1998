"""Filters and methods of texts that ask the budget before they make something large."""

# pyright: basic
# Values in a template have any type.

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.utils import Namespace

from everlearn.chat.budget import ELEMENT_BYTES, Budget, Counted, TooMuch, current_budget

MAX_INTEGER_BITS = 10_000
MAX_WIDTH = 10_000
MAX_INDENT = 16
MAX_DIGITS = MAX_INTEGER_BITS // 6
"""Of a text that is read as a number, in any base."""
MAX_PRECISION = 100
MAX_SOUGHT_CHARS = 1000
"""What is sought from a text's end, or cut from its ends: the search may take so many times the text."""

FILTERS = frozenset(
    [
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "wordcount",
    ]
)
PADDING = frozenset(("ljust", "rjust", "center", "zfill"))
SPLITTING = frozenset(("split", "rsplit", "splitlines"))
SEEKING = frozenset(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"))
LOOKING = frozenset(("get", "items", "keys", "values", "index", "count", "find", "startswith", "endswith"))
"""Methods that make nothing new."""


def checked(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    place = 1 if hasattr(filter, "jinja_pass_arg") else 0

    @functools.wraps(filter)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget.get()
        value = args[place] if len(args) > place else None
        if isinstance(value, Iterator):
            value = budget.counted(value)
        elif isinstance(value, str | list | tuple | dict | range | Counted) and name not in LOOKING_FILTERS:
            budget.expect(ELEMENT_BYTES * len(value))
        if check := FILTER_CHECKS.get(name):
            value = check(budget, value, args[place + 1 :], kwargs)
        return budget.made(filter(*args[:place], value, *args[place + 1 :], **kwargs), deep=name == "map")

    return run


LOOKING_FILTERS = frozenset(
    "abs count d default first float int last length round safe string trim lower upper".split()  # noqa: SIM905
)


def _check_join(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    separator = args[0] if args else kwargs.get("d", "")
    values = list(budget.counted(value)) if isinstance(value, Iterable) else value
    if isinstance(values, list):
        budget.expect(budget.size(values) + len(values) * sys.getsizeof(separator))
    return values


def _check_replace(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old, new = ((*args, "", "")[:2]) if len(args) > 1 else (kwargs.get("old", ""), kwargs.get("new", ""))
    text = to_text(value)
    budget.expect(sys.getsizeof(text) + (text.count(str(old)) * sys.getsizeof(str(new))))
    return text


def _check_indent(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    width = args[0] if args else kwargs.get("width", 4)
    step = len(width) if isinstance(width, str) else int(width)
    text = to_text(value)
    budget.expect(sys.getsizeof(text) + (len(text.splitlines()) + 1) * max(step, 0))
    return text


def _check_format(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    check_percent(to_text(value), kwargs or args)
    return value


def _check_sum(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(kwargs.get("start", args[1] if len(args) > 1 else 0), int | float):
        raise TooMuch("sums what is no number")
    return value


def _check_int(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise TooMuch("computes with numbers that are too large")
    return value


def _check_round(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    precision = args[0] if args else kwargs.get("precision", 0)
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise TooMuch("computes with numbers that are too large")
    return value


def _check_trim(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _check_sought(args[0] if args else kwargs.get("chars"))
    return value


def _check_text(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return written(value)


FILTER_CHECKS: dict[str, Callable[[Budget, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "join": _check_join,
    "replace": _check_replace,
    "indent": _check_indent,
    "format": _check_format,
    "int": _check_int,
    "round": _check_round,
    "sum": _check_sum,
    "trim": _check_trim,
    "string": _check_text,
}


def check_percent(layout: str | bytes, values: Any) -> None:
    budget = current_budget.get()
    text = layout if isinstance(layout, str) else layout.decode("latin-1")
    if re.search(r"%\((?![^()]*\))|%(\([^()]*\))?[^%a-zA-Z]*(\d{4}|\*)", text):
        raise TooMuch("pads a text too far")
    budget.expect((1 + text.count("%")) * budget.size(values))


def check_integer(value: int) -> None:
    if value.bit_length() > MAX_INTEGER_BITS:
        raise TooMuch("computes with numbers that are too large")


def _check_sought(value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_SOUGHT_CHARS:
        raise TooMuch("looks for too long a text")


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a text's method, where its result cannot be too large."""
    budget = current_budget.get()
    if name in PADDING and any(isinstance(one, int) and one > MAX_WIDTH for one in args):
        raise TooMuch("pads a text too far")
    if name in SEEKING and args:
        _check_sought(args[0])
    if name == "join" and args:
        values = list(budget.counted(args[0]))
        budget.expect(budget.size(values) + len(values) * sys.getsizeof(owner))
        return (values,)
    if name == "replace" and len(args) > 1 and isinstance(args[1], str | bytes):
        budget.expect(sys.getsizeof(owner) + owner.count(args[0]) * sys.getsizeof(args[1]))
    if name in SPLITTING:
        separator = args[0] if args and isinstance(args[0], str | bytes) and args[0] else None
        pieces = owner.count(separator) if separator else len(owner) // 2
        budget.expect(ELEMENT_BYTES * pieces)
    return args


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """With the options that transformers gives templates."""
    for written in (indent, *(separators or ())):
        if (len(written) if isinstance(written, str) else written or 0) > MAX_INDENT:
            raise TooMuch("writes JSON too far apart")
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return current_budget.get().made(text)


def written(value: Any) -> Any:
    """What ``{{ … }}`` may write."""
    return to_text(value) if isinstance(value, Namespace) else value


def to_text(value: Any) -> str:
    if isinstance(value, Namespace):
        raise TooMuch("puts a namespace into a text")
    return value if isinstance(value, str) else str(value)
