"""Clients' JSON schemas, each a document of its own, as far as a grammar can enforce them.

What it cannot enforce (``uniqueItems``, look-ahead in a pattern, an unknown format, …) is left open and named where the
schema is not strict, and refused where it is. Everything here is bounded: a schema that would compile for seconds is
cut or refused before it is compiled.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from everlearn.errors import InvalidInput
from serve.engines.compile_check import COMPILE_CHECK

Schema = dict[str, Any]

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, so that no whitespace can go on for ever."""

MAX_STEP_STATES = 10_000
"""A multiple of n is recognized by an automaton of n states: 999,983 took ten seconds and 400 MB to build."""

TRYING_S = 3.0
"""For the patterns, formats and bounds of all schemas of one request; each takes a millisecond at most as a rule."""

MAX_STEPS = 50
"""Places of one schema with ``multipleOf``."""

EXACT = 2**63
"""Integers from here on are floating-point numbers to the grammar: a constant would come out as another number."""

NO_GRAMMAR = frozenset(
    [
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    ]
)
TRIED = {
    "exclusiveMaximum": "number",
    "exclusiveMinimum": "number",
    "format": "string",
    "maximum": "number",
    "minimum": "number",
    "multipleOf": "number",
    "pattern": "string",
    "patternProperties": "object",
}
"""Keywords of which a grammar can enforce some values, and the type that they are tried with."""

ANNOTATIONS = frozenset(
    ["$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"]
)
MAPS = ("$defs", "definitions", "patternProperties", "properties")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = ("additionalItems", "additionalProperties", "items")
DESCRIBING = frozenset(
    ["$ref", "additionalProperties", "allOf", "anyOf", "oneOf", "patternProperties", "properties"]
)
BROKEN = re.compile(
    r"must be|regex parse error|Invalid type|Expected|does not exist|nsatisfiable|invalid multiple|no rules"
)


@dataclass(frozen=True)
class Document:
    """A schema that compiles, as JSON, and the places of the client's schema that it leaves open."""

    json: str
    left_open: tuple[str, ...] = ()


def document(
    schema: Schema, param: str, *, strict: bool, closed: bool, until_s: float = math.inf
) -> Document:
    """What a grammar can enforce of `schema`, the value of the request's field `param`.

    No keyword is tried after ``until_s`` (`time.monotonic`). With ``closed`` an object whose ``properties`` are given has no others, unless ``additionalProperties`` says so.
    Raises InvalidInput for a schema that means nothing, and where ``strict`` for one that cannot be enforced as it is.
    """
    kept, missing = _Pruned(schema, param, until_s).result
    if missing and strict:
        raise InvalidInput(
            f"A grammar cannot enforce {missing[0]}; leave it out, or leave out strict, so that it is left open.",
            param=missing[0],
        )
    flaw = ""
    for variant in ([_closed(kept)] if closed else []) + [kept]:
        written = json.dumps(variant | {"x-guidance": COMPACT | {"lenient": not strict}})
        flaw, warnings = check(written)
        if not flaw:
            return Document(written, (*missing, *(f"{param}: {warning}" for warning in warnings)))
    if strict or BROKEN.search(flaw):
        raise InvalidInput(f"{param} cannot be compiled: {flaw}", param=param)
    return Document(json.dumps({"type": "object", "x-guidance": COMPACT}), (f"{param}: {flaw}",))


def check(written: str) -> tuple[str, list[str]]:
    """Why a schema does not compile, or "" and what is left open of it."""
    failed, messages = COMPILE_CHECK.validate(f"start: %json {written}")
    first = [
        message.partition("\n   1 |")[0].split("failed to compile JSON schema: ")[-1] for message in messages
    ]
    return (first[0][:300], []) if failed else ("", [message[:200] for message in first])


@lru_cache(maxsize=4096)
def _enforceable(type: str, keyword: str, value: str) -> bool:
    return not check(f'{{"type": "{type}", "{keyword}": {value}}}')[0]


class _Pruned:
    """A copy of a schema without what a grammar cannot enforce; `result` also has the places of what was left out."""

    def __init__(self, schema: Schema, param: str, until_s: float) -> None:
        self.until_s = until_s
        self.has_id = "$id" in schema
        self.steps = 0
        self.common_step = 1
        self.missing: list[str] = []
        self.result = self._schema(schema, param), self.missing

    def _schema(self, schema: Any, at: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        kept: Schema = {}
        for keyword, value in schema.items():
            place = f"{at}.{keyword}"
            if keyword in ANNOTATIONS:
                continue
            if self._is_open(schema, keyword, value):
                if not (keyword == "uniqueItems" and value is False):
                    self.missing.append(place)
            elif keyword in MAPS and isinstance(value, dict):
                kept[keyword] = {name: self._schema(each, f"{place}.{name}") for name, each in value.items()}
            elif keyword in LISTS and isinstance(value, list):
                kept[keyword] = [self._schema(each, f"{place}[{n}]") for n, each in enumerate(value)]
            elif keyword in SINGLE:
                kept[keyword] = self._schema(value, place)
            else:
                kept[keyword] = value
        self._loosen_text(kept, at)
        if time.monotonic() > self.until_s:
            raise InvalidInput(
                f"{at} takes too long to try: the schemas of a request may take {TRYING_S:g} s together",
                param=at,
            )
        return kept

    def _loosen_text(self, kept: Schema, at: str) -> None:
        """Leave lengths open where a pattern or format together with them is more than can be decided."""
        bounds = {
            name: kept[name] for name in ("pattern", "format", "minLength", "maxLength") if name in kept
        }
        lengths = bounds.keys() - {"pattern", "format"}
        if (
            lengths
            and lengths != bounds.keys()
            and "Unable" in check(json.dumps({"type": "string"} | bounds))[0]
        ):
            for name in sorted(lengths):
                del kept[name]
                self.missing.append(f"{at}.{name}")

    def _is_open(self, schema: Schema, keyword: str, value: Any) -> bool:
        if keyword in NO_GRAMMAR:
            return True
        if keyword == "$schema":
            return not (isinstance(value, str) and "json-schema.org/draft" in value)
        if keyword == "$ref":
            return isinstance(value, str) and not value.startswith("#") and not self.has_id
        if keyword in ("enum", "const"):
            return any(abs(number) >= EXACT for number in _integers(value))
        if keyword == "multipleOf" and self._too_fine(value):
            return True
        if keyword not in TRIED:
            return False
        if keyword == "patternProperties":
            value = {key: {} for key in value} if isinstance(value, dict) else value
        type = TRIED[keyword]
        if type == "number" and schema.get("type") == "integer":
            type = "integer"
        return not (_enforceable(type, keyword, json.dumps(value)) or self._is_flaw(keyword, value))

    def _too_fine(self, value: Any) -> bool:
        """Whether the automaton of all steps together, should they meet in one number, would be too large."""
        digits = re.fullmatch(r"-?([0-9]*)\.?([0-9]*)(?:e-[0-9]+)?", str(value))
        step = int("".join(digits.groups()) or 0) if digits else MAX_STEP_STATES + 1
        self.steps += 1
        self.common_step = math.lcm(self.common_step, step or 1)
        return self.steps > MAX_STEPS or self.common_step > MAX_STEP_STATES

    @staticmethod
    def _is_flaw(keyword: str, value: Any) -> bool:
        """Whether the value means nothing to anyone: it is kept, and compiling refuses it."""
        if keyword in ("pattern", "patternProperties"):
            patterns = value if isinstance(value, dict) else [value]
            return not all(isinstance(pattern, str) and _is_regex(pattern) for pattern in patterns)
        return not isinstance(value, str if keyword == "format" else int | float) or value == 0


def _is_regex(pattern: str) -> bool:
    """Whether some dialect knows it: what is no regular expression to the grammar may be one to others."""
    if re.search(r"\\[cdpPuxk]|\(\?", pattern):
        return True
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _integers(each)


def _closed(schema: Any, merged: bool = False, open_refs: frozenset[str] | None = None) -> Any:
    """``additionalProperties: false`` wherever ``properties`` are given and nothing else is said.

    Not where several schemas describe one object together (``allOf``, or a reference beside ``properties``): each
    would exclude what the others describe.
    """
    if not isinstance(schema, dict):
        return schema
    if open_refs is None:
        open_refs = frozenset(_merged_refs(schema))
        merged = "#" in open_refs
    merging = merged or _merges(schema)
    result: Schema = {}
    for keyword, value in schema.items():
        if keyword in MAPS and isinstance(value, dict):
            result[keyword] = {
                name: _closed(each, f"#/{keyword}/{name}" in open_refs, open_refs)
                for name, each in value.items()
            }
        elif keyword in LISTS and isinstance(value, list):
            together = merging and keyword != "prefixItems"
            result[keyword] = [_closed(each, together, open_refs) for each in value]
        elif keyword in SINGLE:
            result[keyword] = _closed(value, False, open_refs)
        else:
            result[keyword] = value
    if isinstance(schema.get("properties"), dict) and not merging:
        result.setdefault("additionalProperties", False)
    return result


def _merges(schema: Schema) -> bool:
    """Whether an object may be described by several parts of this schema together."""
    parts = ["$ref" in schema, "properties" in schema]
    parts += [_describes(schema.get("anyOf")), _describes(schema.get("oneOf"))]
    parts += map(_describes, _list(schema.get("allOf")))
    return sum(parts) > 1


def _describes(part: Any) -> bool:
    """Whether a part of a schema, or one of several, says which properties there are."""
    if isinstance(part, list):
        return any(map(_describes, part))
    return isinstance(part, dict) and not DESCRIBING.isdisjoint(part)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _merged_refs(schema: Any, merged: bool = False) -> Iterator[str]:
    """The references that stand where schemas are merged."""
    if isinstance(schema, list):
        for each in schema:
            yield from _merged_refs(each, merged)
    elif isinstance(schema, dict):
        merging = merged or _merges(schema)
        if merging and isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for keyword, value in schema.items():
            if keyword in MAPS and isinstance(value, dict):
                yield from _merged_refs(list(value.values()))
            elif keyword in LISTS:
                yield from _merged_refs(value, merging and keyword != "prefixItems")
            elif keyword in SINGLE:
                yield from _merged_refs(value)
