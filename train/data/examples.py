"""A training example before it is tokens: a text, a conversation, or one with labels."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.data.labelled.example import Labelled
from train.data.reading.forms import MESSAGE_FIELDS, REASONING, UnknownForm, canonical, fault

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 1000
Message = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A document. ``source`` says where it was read: "file.jsonl:17"; ``form`` how it was written there, and
    ``ignored`` which keys of the record nothing was made of. ``left_out``: why reading made no text of it. ``marks``:
    what was found out about it, which is written beside it and not learnt."""

    text: str
    source: str = field(default="", compare=False)
    form: str = field(default="text", compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    left_out: str | None = field(default=None, compare=False)
    marks: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)

    @property
    def record(self) -> dict[str, Any]:
        """What a line of JSONL says of it; :func:`parse_record` takes it back."""
        return {"text": self.text}

    @property
    def sha256(self) -> str:
        """Of the content in Unicode's NFC, whatever it was read from."""
        return _hash(self.record)


@dataclass(frozen=True)
class Chat:
    """A conversation as OpenAI's fine-tuning files hold it; the assistant's messages are what is learnt.

    Messages have "role" and "content" (text, or None beside "tool_calls"), an assistant's also
    "reasoning_content"; one of "weight" 0 is not learnt. ``tools`` are OpenAI's function definitions. The rest as
    in :class:`Text`.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    source: str = field(default="", compare=False)
    form: str = field(default="chat", compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    marks: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)

    @property
    def record(self) -> dict[str, Any]:
        """What a line of JSONL says of it; :func:`parse_record` takes it back."""
        return {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}

    @property
    def sha256(self) -> str:
        """Of the content in Unicode's NFC, whatever it was read from."""
        return _hash(self.record)


RawExample = Text | Chat | Labelled


def parse_record(record: Any, source: str, ignored: tuple[str, ...] = ()) -> RawExample:
    """A record of JSON, or a row of a table, as an example; its forms are those of ``train.data.reading.forms``.

    ``ignored``: what of it was not even read. Raises InvalidInput that begins with ``source``.
    """
    if not isinstance(record, dict):
        what = f"{source}: is {kind_of(record)}, not an object"
        raise UnknownForm(f'{what}. Right would be {{"messages": […]}}', param="training_file")
    form, said, left = canonical(record, source)
    if "text" in said:
        return Text(checked_text(said["text"], source, '"text"'), source, form, (*ignored, *left))
    messages, tools = _messages(said["messages"], source), _tools(said.get("tools"), source)
    unknown = {
        f"messages[].{key}"
        for message in said["messages"]
        for key, value in message.items()
        if key not in MESSAGE_FIELDS - {"refusal"} and value not in (None, "", [], {})
    }
    return Chat(messages, tools, source, form, (*ignored, *left, *sorted(unknown)))


def _messages(messages: list[Any], source: str) -> list[Message]:
    if len(messages) > MAX_MESSAGES:
        raise fault(source, f"has {len(messages)} messages", f"A conversation has at most {MAX_MESSAGES}")
    checked = [_message(message, f"{source}: messages[{n}]") for n, message in enumerate(messages)]
    answers = [message for message in checked if message["role"] == "assistant"]
    if not answers:
        raise fault(source, "has no answer to learn from", 'One message must have the role "assistant"')
    if all(message.get("weight") == 0 for message in answers):
        raise fault(source, "has no answer to learn from: every weight is 0", "Give one answer the weight 1")
    if checked[-1]["role"] != "assistant":
        raise fault(
            source,
            f'ends with a message of the role "{checked[-1]["role"]}"',
            "The last message must be the assistant's answer",
        )
    if not any(message["role"] == "assistant" for message in checked[1:]):
        raise fault(
            source,
            "has nothing before its answer",
            'An answer is learnt after what asks for it: put that before it, or write {"text": …}',
        )
    return checked


def _message(message: Any, source: str) -> Message:
    if not isinstance(message, dict):
        raise fault(
            source, f"is {kind_of(message)}, not an object", 'Right would be {"role": …, "content": …}'
        )
    role = message.get("role")
    if role not in ROLES:
        raise fault(source, f"has the role {json.dumps(role)[:80]}", f"Known roles: {', '.join(ROLES)}")
    kept = {key: value for key, value in message.items() if key in MESSAGE_FIELDS and value is not None}
    calls = kept.get("tool_calls")
    if calls is not None:
        kept["tool_calls"] = _calls(calls, role, source)
    if "content" in kept or calls is None:
        kept["content"] = _content(kept.get("content"), source)
    if REASONING in kept:
        kept[REASONING] = checked_text(kept[REASONING], source, f'"{REASONING}"')
        if role != "assistant":
            raise fault(source, f'has "{REASONING}" and the role "{role}"', "Only an assistant reasons")
    if role == "assistant" and calls is None and not kept["content"].strip():
        raise fault(
            source, "is an empty answer", "Write what the assistant shall say, or leave the example out"
        )
    if kept.get("weight", 1) not in (0, 1):
        raise fault(source, f"has the weight {kept['weight']!r}", "A weight is 0 or 1")
    if "weight" in kept:
        kept["weight"] = int(kept["weight"])
    return kept


def _content(content: Any, source: str) -> str:
    """Content as one text: OpenAI's clients may send it in parts."""
    if not isinstance(content, list):
        return checked_text(content, source, '"content"')
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise fault(
                source, '"content" has a part that is not text', 'Right would be {"type": "text", "text": …}'
            )
    return "".join(checked_text(part.get("text"), source, '"content"') for part in content)


def _calls(calls: Any, role: str, source: str) -> list[dict[str, Any]]:
    if role != "assistant":
        raise fault(source, f'has "tool_calls" and the role "{role}"', "Only an assistant calls tools")
    for call in calls if isinstance(calls, list) and calls else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise fault(
                source,
                '"tool_calls" is not a list of calls',
                'Right would be [{"type": "function", "function": {"name": …, "arguments": "{…}"}}]',
            )
        if not isinstance(function.get("arguments"), str):
            raise fault(source, "a call's arguments are not text", "Write them as JSON in a string")
        checked_text(function["name"] + function["arguments"], source, '"tool_calls"')
    return calls


def _tools(tools: Any, source: str) -> list[dict[str, Any]] | None:
    if tools is None or tools == []:
        return None
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise fault(
                source,
                '"tools" is not a list of functions',
                'Right would be [{"type": "function", "function": {"name": …, "parameters": {…}}}]',
            )
    checked_text(json.dumps(tools, ensure_ascii=False), source, '"tools"')
    return tools


def checked_text(value: Any, source: str, where: str) -> str:
    """``value`` as it is. Raises InvalidInput where it is no text, or half of one."""
    if not isinstance(value, str):
        right = (
            "Put it between quotation marks" if value is not None else "Write it, or leave the example out"
        )
        raise fault(source, f"{where} is {kind_of(value)}, not text", right)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise fault(
            source,
            f"{where} has half a character, \\u{code:04x}, at {error.start}",
            "Write both surrogates or none",
        ) from None
    return value


def kind_of(value: Any) -> str:
    """What JSON calls it."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "text" if isinstance(value, str) else "an object")


def _hash(record: dict[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(unicodedata.normalize("NFC", canonical).encode()).hexdigest()
