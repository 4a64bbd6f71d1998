"""Messages to a prompt, and an answer to tool calls."""

from __future__ import annotations

import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from everlearn.errors import InvalidInput, Unsupported
from serve.engines.onnx.constraint import TOOL_CLOSE, TOOL_OPEN
from serve.engines.onnx.text import TextCodec
from serve.protocol import AssistantMessage, Message, Tool, ToolMessage

TOOLS_PROMPT = """You can call functions. Their signatures, as JSON, one a line:
<tools>
{signatures}
</tools>
To call a function, answer with its name and arguments as JSON between tags:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>"""

TOOL_CALL = re.compile(re.escape(TOOL_OPEN) + r"(.*?)" + re.escape(TOOL_CLOSE), re.DOTALL)


class ChatTemplate:
    """A bundle's Jinja chat template, run in a sandbox."""

    def __init__(self, bundle: Path, codec: TextCodec) -> None:
        config_file = bundle / "tokenizer_config.json"
        config = json.loads(config_file.read_text()) if config_file.exists() else {}
        template_file = bundle / "chat_template.jinja"
        source = template_file.read_text() if template_file.exists() else config.get("chat_template")
        self.codec = codec
        self.tokens = {name: token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self.knows_tools = isinstance(source, str) and "tools" in source
        self.template = sandbox().from_string(source) if isinstance(source, str) else None
        self.special = re.compile(
            "|".join(map(re.escape, sorted(codec.special, key=len, reverse=True))) or r"(?!)"
        )

    def encode(self, messages: list[Message], tools: list[Tool]) -> list[int]:
        """The prompt's tokens. A special token's name inside a message stays text: no role can be forged.

        Raises Unsupported without a template, InvalidInput when the template refuses the messages.
        """
        if self.template is None:
            raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
        plain = [self.plain(message) for message in messages]
        signatures = [tool.model_dump(exclude_unset=True) for tool in tools]
        if tools and not self.knows_tools:
            plain = describe_tools(plain, signatures)
        mark = secrets.token_hex(8)
        taken: list[str] = []
        plain = [self._shield(message, mark, taken) for message in plain]
        try:
            prompt = self.template.render(
                messages=plain, tools=signatures or None, add_generation_prompt=True, **self.tokens
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        pieces = re.split(f"\ue000{mark}([0-9]+)\ue001", prompt)
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self.codec.encode_literal(taken[int(piece)]) if index % 2 else self.codec.encode(piece)
        return ids

    def plain(self, message: Message) -> dict[str, Any]:
        """The dictionary that templates expect: content as one string, tool arguments as an object."""
        parts = message.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts or ())
        role = "system" if message.role == "developer" else message.role
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = [
                {"name": call.function.name, "arguments": json_or_text(call.function.arguments)}
                for call in message.tool_calls
            ]
            if self.knows_tools:
                called = [{"type": "function", "function": call} for call in calls]
                return {"role": role, "content": text, "tool_calls": called}
            written = "\n".join(
                TOOL_OPEN + json.dumps(call, ensure_ascii=False) + TOOL_CLOSE for call in calls
            )
            return {"role": role, "content": f"{text}\n{written}" if text else written}
        if isinstance(message, ToolMessage) and not self.knows_tools:
            return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
        return {"role": role, "content": text}

    def _shield(self, value: Any, mark: str, taken: list[str]) -> Any:
        """`value` with each special token's name replaced by a mark that no client can guess."""
        if isinstance(value, dict):
            return {key: self._shield(inner, mark, taken) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._shield(inner, mark, taken) for inner in value]
        if not isinstance(value, str):
            return value

        def replace(match: re.Match[str]) -> str:
            taken.append(match[0])
            return f"\ue000{mark}{len(taken) - 1}\ue001"

        return self.special.sub(replace, value)


def sandbox() -> ImmutableSandboxedEnvironment:
    """The environment that Hugging Face chat templates are written for, without its loopholes."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


def refuse(message: str) -> NoReturn:
    """What a template calls when it cannot render a conversation."""
    raise TemplateError(message)


def token_text(token: Any) -> str:
    """tokenizer_config.json writes a token as its text or as an object that holds it."""
    return token.get("content", "") if isinstance(token, dict) else token or ""


def json_or_text(text: str) -> Any:
    """The value of a JSON text, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def describe_tools(messages: list[dict[str, Any]], signatures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell a model whose template knows no tools about them, in the system message."""
    lines = "\n".join(json.dumps(signature["function"], ensure_ascii=False) for signature in signatures)
    text = TOOLS_PROMPT.format(signatures=lines)
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The complete calls in an answer, as OpenAI's `tool_calls`."""
    calls = [json.loads(match[1]) for match in TOOL_CALL.finditer(text)]
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json.dumps(call["arguments"], ensure_ascii=False),
            },
        }
        for call in calls
    ]
