"""The grammar that an answer must follow, from a chat request: one text for both kinds of engine, in llguidance's Lark."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.errors import InvalidInput
from serve.engines.calls import HERMES, Form
from serve.engines.schemas import TRYING_S, Document, document
from serve.protocol.chat import (
    ChatRequest,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
    Tool,
)
from serve.protocol.tokens import TokenizeRequest

MAX_CALLS = 8
"""Calls in one answer: a small model that may repeat itself does so until it is stopped."""

MAX_HEADER_CHARACTERS = 1000

VALUE = "response_format.json_schema.schema"


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's dialect of Lark, and what of the client's schemas it leaves open."""

    lark: str
    param: str
    """The request's field that is at fault if it does not compile."""
    left_open: tuple[str, ...] = ()
    json: bool = False
    """Text that it allows is a JSON value."""


def offered_tools(request: ChatRequest | TokenizeRequest) -> list[Tool]:
    """The tools that this answer may call: those that its prompt shows."""
    if not request.tools or request.tool_choice == "none":
        return []
    if isinstance(request.tool_choice, NamedTool):
        return [tool for tool in request.tools if tool.function.name == request.tool_choice.function.name]
    return request.tools


def must_call(request: ChatRequest) -> bool:
    """Whether the answer is calls and nothing else."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def grammar_of(request: ChatRequest) -> Grammar | None:
    """What binds the answer to `request`; None where nothing does. Raises InvalidInput naming the field at fault.

    With tools the answer is text and then calls; with a format besides, it is calls or a value of that format; where
    a call must come, the format does not matter.
    """
    until_s = time.monotonic() + TRYING_S
    response_format = request.response_format
    tools = offered_tools(request)
    if not tools:
        if isinstance(response_format, GrammarFormat):
            return Grammar(response_format.grammar, "response_format.grammar")
        value = _value(response_format, until_s)
        return value and Grammar(f"start: %json {value.json}", VALUE, value.left_open, json=True)
    arguments = [_arguments(tool, request, until_s) for tool in tools]
    left_open = tuple(place for each in arguments for place in each.left_open)
    other = None
    if not must_call(request):
        if isinstance(response_format, GrammarFormat):
            raise InvalidInput(
                "A response_format of type grammar and tools exclude each other.", param="tools"
            )
        value = _value(response_format, until_s)
        other = value.json if value else ""
        left_open += value.left_open if value else ()
    several = request.parallel_tool_calls is not False and not isinstance(request.tool_choice, NamedTool)
    names = [tool.function.name for tool in tools]
    lark = calls_lark(names, [each.json for each in arguments], other, several=several)
    return Grammar(lark, "tools", left_open, json=bool(other))


def header_text(left_open: Sequence[str]) -> str:
    """`left_open` as the value of a header: ASCII, on one line, not too long."""
    told = ", ".join(left_open).encode("ascii", "backslashreplace").decode()
    told = "".join(c if c.isprintable() else " " for c in told)
    return told if len(told) <= MAX_HEADER_CHARACTERS else f"{told[:MAX_HEADER_CHARACTERS]}..."


def calls_lark(
    names: Sequence[str], schemas: Sequence[str], other: str | None, *, several: bool, form: Form = HERMES
) -> str:
    """Calls of functions with `names`, the arguments of each bound by its schema (JSON).

    `other` is what may stand in place of calls: nothing (None), text that may also stand before them (""), or a value
    of this schema. Text ends where a call's tag begins, so that what looks like a call is one.
    """
    more = f"{{0,{MAX_CALLS - 1}}}"
    opening, rest = json.dumps(form.tag), json.dumps(form.opening.removeprefix(form.tag))
    lines = [f"call: {rest} ({' | '.join(f'call_{i}' for i in range(len(names)))})"]
    repeat = f' ("\\n" {opening} call){more}' if several else ""
    if other is None:
        lines.append(f"start: {opening} call{repeat}")
    elif other:
        lines += [f"start: value | {opening} call{repeat}", f"value: %json {other}"]
    else:
        lines += [
            f"start: text | before call{repeat}",
            f"before[lazy]: TEXT {opening}",
            "text: TEXT",
            r"TEXT: /(.|\n)*/",
        ]
    for i, (name, schema) in enumerate(zip(names, schemas, strict=True)):
        lines.append(f"call_{i}: {json.dumps(name + form.middle)} args_{i} {json.dumps(form.closing)}")
        lines.append(f"args_{i}: %json {schema}")
    return "\n".join(lines)


def _arguments(tool: Tool, request: ChatRequest, until_s: float) -> Document:
    """A function's parameters; what is nobody's fault but the schema's is told by the tool's place in the request."""
    place = f"tools[{(request.tools or []).index(tool)}].function.parameters"
    schema = tool.function.parameters or {}
    if schema.keys().isdisjoint(("type", "$ref", "allOf", "anyOf", "oneOf", "enum", "const")):
        schema = {"type": "object"} | schema
    if schema.get("type", "object") in ("array", "boolean", "integer", "null", "number", "string"):
        raise InvalidInput("A function's arguments are an object.", param=f"{place}.type")
    return document(schema, place, strict=bool(tool.function.strict), closed=True, until_s=until_s)


def _value(response_format: ResponseFormat | None, until_s: float) -> Document | None:
    """The JSON that a format asks for; None for text."""
    if isinstance(response_format, JsonObjectFormat):
        return document({"type": "object"}, "response_format", strict=False, closed=False)
    if isinstance(response_format, JsonSchemaFormat):
        strict = bool(response_format.json_schema.strict)
        return document(
            response_format.json_schema.schema_, VALUE, strict=strict, closed=strict, until_s=until_s
        )
    return None
