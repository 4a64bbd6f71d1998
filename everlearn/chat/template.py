"""Chat templates: Jinja programs that come with a model, rendered in one way for training, serving and inspection."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from pydantic_core import from_json

from everlearn.chat.bounded_jinja import BoundedEnvironment
from everlearn.errors import Corrupt

TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
TOOL_OPEN, TOOL_CLOSE = "<tool_call>\n", "\n</tool_call>"

TOOLS_PROMPT = """You can call functions. Their signatures, as JSON, one a line:
<tools>
{signatures}
</tools>
To call a function, answer with its name and arguments as JSON between tags:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def now(form: str) -> str:
    """The date as templates ask for it."""
    return datetime.now(UTC).strftime(form)


def sandbox(strftime_now: Callable[[str], str] = now) -> BoundedEnvironment:
    """The environment that Hugging Face chat templates are written for, without its loopholes.

    Templates end within bounds of time and size; whatever they raise is a TemplateError.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportArgumentType]
    environment.globals["strftime_now"] = strftime_now  # pyright: ignore[reportArgumentType]
    return environment


def template_source(directory: Path) -> str | None:
    """The chat template of a model's directory; of several, the one called default."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    said = _config(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(said, list):
        named: list[Any] = [one for one in said if isinstance(one, dict)]  # pyright: ignore[reportUnknownVariableType]
        said = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return said if isinstance(said, str) else None


def token_names(directory: Path) -> dict[str, str]:
    """What templates may write by name: bos_token and its kin, empty where the model has none."""
    files = [_config(directory / f"{file}.json") for file in ("tokenizer_config", "special_tokens_map")]
    return {
        name: next(filter(None, (_token_text(said.get(name)) for said in files)), "") for name in TOKEN_NAMES
    }


def plain_message(message: Mapping[str, Any], *, knows_tools: bool) -> dict[str, Any]:
    """The dictionary that templates expect, of an OpenAI message: one text, tool arguments as an object.

    Without ``knows_tools`` calls and their results become text, as :data:`TOOLS_PROMPT` asks for them.
    """
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if calls := message.get("tool_calls"):
        functions = [
            {"name": call["function"]["name"], "arguments": _json_or_text(call["function"]["arguments"])}
            for call in calls
        ]
        if knows_tools:
            called = [{"type": "function", "function": function} for function in functions]
            return {"role": role, "content": text, "tool_calls": called}
        written = "\n".join(
            TOOL_OPEN + json.dumps(each, ensure_ascii=False) + TOOL_CLOSE for each in functions
        )
        return {"role": role, "content": f"{text}\n{written}" if text else written}
    if role == "tool" and not knows_tools:
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    return {"role": role, "content": text}


def describe_tools(
    messages: Sequence[dict[str, Any]], tools: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Tells a model whose template knows no tools about them, in the system message."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = TOOLS_PROMPT.format(signatures=lines)
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


NOTHING = re.compile(r"(?!)")


class Shield:
    """Hides special tokens' names in messages and tools from the template and the tokenizer, each behind a mark of its own.

    So a name stays text, and no message can forge a role. ``secret`` is what nobody can have written into a
    message: a random word, or a hash of the messages.
    """

    def __init__(self, special: re.Pattern[str], secret: str) -> None:
        self._special = special
        self._secret = secret
        self._taken: list[str] = []

    def hide(self, value: Any) -> Any:
        """``value`` (a text, or lists and dictionaries of them) without the names, in keys neither."""
        if self._special is NOTHING:  # an expression takes 8 ms per megabyte to find that out
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}  # pyright: ignore
        if isinstance(value, list):
            return [self.hide(inner) for inner in value]  # pyright: ignore
        return self._special.sub(self._mark, value) if isinstance(value, str) else value

    def parts(self, text: str) -> list[str]:
        """The template's writing and the hidden names, in turn."""
        pieces = re.split(f"\ue000{self._secret}([0-9]+)\ue001", text)
        return [self._taken[int(piece)] if n % 2 else piece for n, piece in enumerate(pieces)]

    def _mark(self, match: re.Match[str]) -> str:
        self._taken.append(match[0])
        return f"\ue000{self._secret}{len(self._taken) - 1}\ue001"


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches each of ``names``, the longest first; nothing where there is none."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else NOTHING


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's tokens for training; the text passes through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> NoReturn:
    """What a template calls when it cannot render a conversation."""
    raise TemplateError(message)


def _config(file: Path) -> dict[str, Any]:
    """A configuration; empty where there is none. Raises Corrupt."""
    try:
        said = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Corrupt(f"{file} is not JSON: {error}", param=file.name) from None
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}


def _token_text(token: Any) -> str:
    """A configuration writes a token as its text, or as an object that holds it."""
    named = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    return named if isinstance(named, str) else ""


def _json_or_text(text: str) -> Any:
    """The value of JSON text; the text itself where it is none, is nested hundreds of levels deep, or no Unicode."""
    try:
        return from_json(text)
    except ValueError:
        return text
