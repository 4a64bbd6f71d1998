"""A conversation as the model's own chat template writes it, with the answers told from everything else.

The template is a program that came with the model: it runs in jinja2's sandbox. A special token's name inside a
message stays text, so no example can forge a role. The gateway's engines render prompts in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jinja2 import TemplateError

from everlearn.chat_template import Shield, any_of, describe_tools, plain_message, sandbox
from everlearn.errors import InvalidInput, Unsupported
from train.data.examples import Chat, Message

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
        self._special = any_of(special_tokens)
        try:
            self._template = sandbox(A_DAY.strftime).from_string(source)
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
            plain = describe_tools(plain, chat.tools)
        learnt = [
            at
            for at, message in enumerate(plain)
            if at > 0 and message["role"] == "assistant" and message.pop("weight", 1)
        ]
        shield = Shield(self._special, chat.sha256[:16])
        shown = [{key: shield.hide(value) for key, value in message.items()} for message in plain]
        chat = replace(chat, tools=shield.hide(chat.tools))
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
        weight = {"weight": message["weight"]} if "weight" in message else {}
        return plain_message(message, knows_tools=self.knows_tools) | weight


def _segments(text: str, answers: list[tuple[int, int]], shield: Shield) -> list[Segment]:
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
