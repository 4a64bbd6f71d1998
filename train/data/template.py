"""A conversation as the model's own chat template writes it, with the answers told from everything else.

The template is a program that came with the model: it runs in jinja2's sandbox. A special token's name inside a
message stays text, so no example can forge a role. The gateway's engines render prompts in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from everlearn.errors import InvalidInput, Unsupported
from train.data.examples import Chat, Message

TOOLS_PROMPT = """You can call functions. Their signatures, as JSON, one a line:
<tools>
{signatures}
</tools>
To call a function, answer with its name and arguments as JSON between tags:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>"""

A_DAY = datetime(2025, 1, 1, tzinfo=UTC)
"""Templates that write the date get this one: the same data must become the same tokens tomorrow."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation. ``parts`` alternate between the template's writing (where special
    tokens count) and literal text (where their names are only names). ``learnt``: an answer, up to its end."""

    parts: list[str]
    learnt: bool


class ChatTemplate:
    """``variables`` are the names that templates may ask for: bos_token and its kin."""

    def __init__(self, source: str, special_tokens: Iterable[str], variables: dict[str, str]) -> None:
        self.source = source
        self.variables = variables
        self.knows_tools = "tools" in source
        names = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        try:
            self._template = _sandbox().from_string(source)
        except TemplateError as error:
            raise Unsupported(f"the model's chat template cannot be read: {error}") from None

    def conversations(self, chat: Chat) -> list[list[Segment]]:
        """The conversation in segments; one list, unless the template rewrites earlier turns as it goes on
        (some drop old reasoning): then one for each answer, as the model would have been asked for it.

        An answer that nothing comes before is not learnt. Raises InvalidInput naming the example where the
        template refuses it.
        """
        plain = [self._plain(message) for message in chat.messages]
        if chat.tools and not self.knows_tools:
            plain = _describe_tools(plain, chat.tools)
        learnt = [
            at
            for at, message in enumerate(plain)
            if at > 0 and message["role"] == "assistant" and message.pop("weight", 1)
        ]
        shield = _Shield(self._special, chat.sha256[:16])
        shown = [{key: shield.hide(value) for key, value in message.items()} for message in plain]
        whole = self._render(shown, chat, answer=False)
        spans = [self._answer(shown, at, chat) for at in learnt]
        if all(whole.startswith(through) for _, through in spans):
            return [_segments(whole, [(start, len(through)) for start, through in spans], shield)]
        return [_segments(through, [(start, len(through))], shield) for start, through in spans]

    def _answer(self, messages: list[Message], at: int, chat: Chat) -> tuple[int, str]:
        """Where the answer ``messages[at]`` begins in the conversation up to it, and that conversation.

        It begins where the prompt for it ends, or where the two part: some prompts open a reasoning section
        that a template does not keep.
        """
        through = self._render(messages[: at + 1], chat, answer=False)
        prompt = self._render(messages[:at], chat, answer=True)
        return _shared(prompt, through), through

    def _render(self, messages: list[Message], chat: Chat, *, answer: bool) -> str:
        tools = chat.tools if self.knows_tools else None
        try:
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=answer, **self.variables
            )
        except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(
                f"{chat.source or 'the conversation'}: the model's chat template refuses it: {error}. "
                "Right would be messages that the template knows, in an order that it knows",
                param="training_file",
            ) from None

    def _plain(self, message: Message) -> Message:
        """The dictionary that templates expect: content as one string, tool arguments as an object."""
        role = "system" if message["role"] == "developer" else message["role"]
        text = message.get("content") or ""
        weight = {"weight": message["weight"]} if "weight" in message else {}
        if calls := message.get("tool_calls"):
            functions = [
                {"name": call["function"]["name"], "arguments": _json_or_text(call["function"]["arguments"])}
                for call in calls
            ]
            if self.knows_tools:
                called = [{"type": "function", "function": function} for function in functions]
                return {"role": role, "content": text, "tool_calls": called, **weight}
            lines = (f"<tool_call>{json.dumps(each, ensure_ascii=False)}</tool_call>" for each in functions)
            written = "\n".join(lines)
            return {"role": role, "content": f"{text}\n{written}" if text else written, **weight}
        if role == "tool" and not self.knows_tools:
            return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
        return {"role": role, "content": text, **weight}


class _Shield:
    """Hides special tokens' names from the template and the tokenizer, each behind a mark of its own.

    ``secret`` comes from the hash of the whole conversation, so that no text in it can hold the mark.
    """

    def __init__(self, special: re.Pattern[str], secret: str) -> None:
        self._special = special
        self._secret = secret
        self._taken: list[str] = []

    def hide(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.hide(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.hide(inner) for inner in value]
        return self._special.sub(self._mark, value) if isinstance(value, str) else value

    def parts(self, text: str) -> list[str]:
        """Template's writing and hidden names in turn."""
        pieces = re.split(f"\ue000{self._secret}([0-9]+)\ue001", text)
        return [self._taken[int(piece)] if n % 2 else piece for n, piece in enumerate(pieces)]

    def _mark(self, match: re.Match[str]) -> str:
        self._taken.append(match[0])
        return f"\ue000{self._secret}{len(self._taken) - 1}\ue001"


def _segments(text: str, answers: list[tuple[int, int]], shield: _Shield) -> list[Segment]:
    segments: list[Segment] = []
    at = 0
    for start, stop in answers:
        segments += [
            Segment(shield.parts(text[at:start]), False),
            Segment(shield.parts(text[start:stop]), True),
        ]
        at = stop
    return [*segments, Segment(shield.parts(text[at:]), False)]


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def _sandbox() -> ImmutableSandboxedEnvironment:
    """The environment that Hugging Face chat templates are written for, without its loopholes."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = A_DAY.strftime
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _describe_tools(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Tell a model whose template knows no tools about them, in the system message."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = TOOLS_PROMPT.format(signatures=lines)
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
