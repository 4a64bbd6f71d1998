"""A conversation as the model's own chat template writes it, with the answers told from everything else.

The template is a program that came with the model: it runs in jinja2's sandbox. A special token's name inside a
message stays text, so no example can forge a role. The gateway's engines render prompts in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jinja2 import TemplateError

from everlearn.chat.stops import NO_STOPS, RESULT, USER, Stops
from everlearn.chat.template import Shield, any_of, describe_tools, plain_message, sandbox
from everlearn.errors import InvalidInput, Unsupported
from train.data.examples import Chat, Message
from train.data.reading.forms import REASONING

A_DAY = datetime(2025, 1, 1, tzinfo=UTC)
"""Templates that write the date get this one: the same data must become the same tokens tomorrow."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation. ``parts`` alternate between the template's writing (where special
    tokens count) and literal text (where their names are only names). ``learnt``: an answer, up to the last control
    in it, which ends it; or all of it and the id ``stop``, which the template does not write; or all of it, where
    it is left ``open``: the model has no token that could end it."""

    parts: list[str]
    learnt: bool
    stop: int | None = None
    open: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer in ``text``, the conversation up to its end, from the character ``start`` on. See :class:`Segment`."""

    start: int
    text: str
    stop: int | None = None
    open: bool = False


class ChatTemplate:
    """``variables`` are the names that templates may ask for: bos_token and its kin. ``stops``: what ends answers."""

    def __init__(
        self, source: str, special_tokens: Iterable[str], variables: dict[str, str], stops: Stops = NO_STOPS
    ) -> None:
        self.stops = stops
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
        (some drop old reasoning), or writes no end behind them: then one for each answer, as the model would have
        been asked for it.

        An answer that nothing comes before is not learnt. Raises InvalidInput naming the example where the
        template refuses it, or leaves out the reasoning of an answer that is learnt.
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
        answers = [self._answer(shown, at, chat) for at in learnt]
        for at, answer in zip(learnt, answers, strict=True):
            if shown[at].get(REASONING, "").strip() not in answer.text[answer.start :]:
                raise InvalidInput(
                    f'{chat.source or "the conversation"}: messages[{at - len(plain) + len(chat.messages)}] has "{REASONING}", '
                    'and the model\'s chat template does not write that. Write it into "content" as the model shall '
                    "say it, such as between <think> and </think>, or leave it out",
                    param="training_file",
                )
        if answers and answers[-1].text.startswith(whole):
            whole = answers[-1].text  # with its end, where the template writes that with the next message
        if all(whole.startswith(each.text) and each.stop is None for each in answers):
            return [_segments(whole, answers, shield)]
        return [_segments(each.text, [each], shield) for each in answers]

    def _answer(self, messages: list[Message], at: int, chat: Chat) -> Answer:
        """The answer ``messages[at]``, up to what ends it when the model writes it.

        It begins where the prompt for it ends, or where the two part: some prompts open a reasoning section
        that a template does not keep.
        """
        text = self._render(messages[: at + 1], chat, answer=False)
        prompt = self._render(messages[:at], chat, answer=True)
        start = self.stops.controls.beginning(text, _shared(prompt, text))
        run = self.stops.controls.trailing(text[start:])
        place = self.stops.first_in([name for name, _ in run])
        if place is not None:  # and the white space behind it; other controls are not the model's to write
            return Answer(start, text if place == len(run) - 1 else text[: start + run[place][1]])
        said = _end_of_content(text, start, messages[at])
        if end := self._stop_before(text[said:]):  # a template that goes on by opening the next answer
            return Answer(start, text[:said] + end)
        if end := self._end_written_later(messages, at, text, chat):
            return Answer(start, text + end)
        if self.stops.text_end is None:
            return Answer(start, text, open=True)
        return Answer(start, text[:said], self.stops.text_end)

    def _end_written_later(self, messages: list[Message], at: int, text: str, chat: Chat) -> str:
        """What the template writes behind the answer when another message follows it, up to the token that stops.

        Empty where there is none.
        """
        if not self.stops.turn_ends:
            return ""
        follows = RESULT if messages[at].get("tool_calls") else USER
        if at + 1 < len(messages) and messages[at + 1]["role"] == follows["role"]:
            follows = messages[at + 1]
        try:
            longer = self._render([*messages[: at + 1], follows], chat, answer=False)
        except InvalidInput:
            return ""
        return self._stop_before(longer[len(text) :]) if longer.startswith(text) else ""

    def _stop_before(self, rest: str) -> str:
        """What ``rest`` begins with, up to a token that stops; empty where other words come first."""
        run = self.stops.controls.leading(rest)
        place = self.stops.first_in(run)
        if place is None:
            return ""
        end = 0
        for name in run[: place + 1]:
            end = rest.index(name, end) + len(name)
        return rest[:end]

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
        beside = {key: message[key] for key in ("weight", REASONING) if key in message}
        return plain_message(message, knows_tools=self.knows_tools) | beside


def _segments(text: str, answers: list[Answer], shield: Shield) -> list[Segment]:
    segments: list[Segment] = []
    at = 0
    for answer in answers:
        stop = len(answer.text)
        segments += [
            Segment(shield.parts(text[at : answer.start]), False),
            Segment(shield.parts(text[answer.start : stop]), True, answer.stop, answer.open),
        ]
        at = stop
    return [*segments, Segment(shield.parts(text[at:]), False)]


def _end_of_content(text: str, start: int, message: Message) -> int:
    """Where what the message says ends in ``text``, before what the template writes behind it."""
    for content in (message["content"], message["content"].strip()):
        if content and (found := text.rfind(content, start)) >= 0:
            return found + len(content)
    return max(start, len(text.rstrip()))


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
