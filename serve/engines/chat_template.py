"""Messages to a prompt, and an answer to tool calls."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from everlearn.chat.template import (
    Shield,
    any_of,
    describe_tools,
    plain_message,
    sandbox,
    template_source,
    token_names,
)
from everlearn.errors import InvalidInput, Unsupported
from serve.engines.tokenizer import TextCodec
from serve.protocol.chat import Message, Tool


class ChatTemplate:
    """A bundle's Jinja chat template, run in a sandbox."""

    def __init__(self, bundle: Path, codec: TextCodec) -> None:
        source = template_source(bundle)
        self.codec = codec
        self.tokens = token_names(bundle)
        self.knows_tools = source is not None and "tools" in source
        self.template = sandbox().from_string(source) if source is not None else None

    def encode(self, messages: list[Message], tools: list[Tool]) -> list[int]:
        """The prompt's tokens. A special token's name in a message or a tool stays text: no role can be forged.

        Raises Unsupported without a template, InvalidInput when the template refuses the messages.
        """
        if self.template is None:
            raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
        plain = [self.plain(message) for message in messages]
        signatures = [signature(tool) for tool in tools]
        if tools and not self.knows_tools:
            plain = describe_tools(plain, signatures)
        texts = list(texts_in([plain, signatures]))
        found = [name for name in self.codec.special if any(name in text for text in texts)]
        shield = Shield(any_of(found), secrets.token_hex(8))
        plain = [shield.hide(message) for message in plain]
        try:
            prompt = self.template.render(
                messages=plain,
                tools=shield.hide(signatures) or None,
                add_generation_prompt=True,
                **self.tokens,
            )
        except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self.codec.encode_parts(shield.parts(prompt), "messages")

    def plain(self, message: Message) -> dict[str, Any]:
        """The dictionary that this template expects."""
        return plain_message(message.model_dump(exclude_unset=True), knows_tools=self.knows_tools)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in lists and dictionaries, keys too. Looking for names in each is far faster than one expression for all."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from texts_in(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def signature(tool: Tool) -> dict[str, Any]:
    """What a model reads of a tool; how strictly its schema binds is the grammar's affair."""
    return tool.model_dump(exclude_unset=True, exclude={"function": {"strict"}})
