"""Parse an answer into text, calls of the offered functions, or a call that was cut.

One reading for streamed and whole answers, and for both kinds of engine: text goes in as it is generated, and what is
certain comes out. The grammar of the answer (`serve.engines.grammar`) is written from the same `Form`, so a call that has
begun is one of a function on offer, and its arguments keep to their schema.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from everlearn.chat.template import TOOL_CLOSE, TOOL_OPEN

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Form:
    """How a family of models writes a call: opening, name, middle, arguments as JSON, closing."""

    opening: str
    middle: str
    closing: str
    tag: str
    """The beginning of `opening` that is never text where calls are on offer."""

    def head(self, name: str) -> str:
        """What stands before the arguments of a call of `name`."""
        return f"{self.opening}{name}{self.middle}"


HERMES = Form(TOOL_OPEN + '{"name": "', '", "arguments": ', "}" + TOOL_CLOSE, TOOL_OPEN.rstrip("\n"))


@dataclass(frozen=True)
class CallPart:
    """A piece of a call: its first one has `id` and `name`, all have some of the arguments' JSON."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None

    def delta(self) -> dict[str, Any]:
        """As an entry of `delta.tool_calls`."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


@dataclass
class Said:
    """What a piece of an answer adds: text, or parts of calls after it."""

    text: str = ""
    calls: list[CallPart] = field(default_factory=list)
    finish: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended it."""

    def add(self, other: Said) -> None:
        """What comes next."""
        self.text += other.text
        self.calls += other.calls
        self.finish = self.finish or other.finish
        self.stop = self.stop or other.stop


def whole_calls(parts: Sequence[CallPart]) -> list[dict[str, Any]]:
    """The parts of an answer's calls as `message.tool_calls`. A call that was cut has the arguments that came."""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            calls.append({"id": part.id, "type": "function", "function": function})
        calls[part.index]["function"]["arguments"] += part.arguments
    return calls


class Reading:
    """Reads one answer. `stopped` is set when its text holds a stop string: what follows is not part of it.

    With `json` its text is a JSON value. Text is held back while it may be the beginning of a call or of a stop string.
    Stop strings are looked for in text alone: they cut neither a call nor its framing.
    """

    def __init__(
        self,
        stop: Sequence[str] = (),
        names: Sequence[str] = (),
        *,
        must_call: bool = False,
        json: bool = False,
        form: Form = HERMES,
    ) -> None:
        self.stopped = False
        self._value = _Json() if json else None
        self._stop = stop
        self._found: str | None = None
        self._heads = {form.head(name): name for name in names}
        self._must_call = must_call
        self._form = form
        self._text = ""
        self._held = ""
        self._after_call = False
        self._arguments: _Json | None = None
        self._calls = 0

    def feed(self, text: str) -> Said:
        """What `text`, the next piece of the answer, makes certain."""
        if not self._heads:
            return Said(self._released(text))
        said = Said()
        self._held += text
        while not self.stopped and (
            self._go_on_with_call(said) if self._arguments else self._look_for_call(said)
        ):
            pass
        return said

    def finish(self, reason: Literal["stop", "length"]) -> Said:
        """The rest of an answer that ended by itself, or was cut. A call's framing that was cut is no text."""
        if self.stopped:
            return Said(finish="stop", stop=self._found)
        held, self._held = self._held, ""
        if self._arguments or (held and (self._must_call or (reason == "length" and len(held) > 1))):
            held = ""
        text = self._released(held)
        if not self.stopped:
            text, self._text = text + self._text, ""
        called = reason == "stop" and self._calls and not self._arguments
        finish = "tool_calls" if called else "stop" if self.stopped else reason
        return Said(text, finish=finish, stop=None if called else self._found)

    def repeated_keys(self) -> list[str]:
        """What would come next in a JSON object, were it a key that the object has already."""
        json = self._arguments or self._value
        return json.repeated_keys() if json else []

    # -- text ---------------------------------------------------------------------------------------------

    def _released(self, new: str) -> str:
        """The text that no stop string can begin in; sets `stopped` at the first of them."""
        if self._after_call:
            new = new.lstrip()
            self._after_call = not new
        if self._value:
            self._value.feed(new)
        if not self._stop:
            return new
        text = self._text + new
        cuts = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if cuts:
            cut, self._found = min(cuts)
            self.stopped, self._text = True, ""
            return text[:cut]
        cut = len(text) - max(overlap(text, stop) for stop in self._stop)
        self._text = text[cut:]
        return text[:cut]

    # -- calls --------------------------------------------------------------------------------------------

    def _look_for_call(self, said: Said) -> bool:
        """Release text up to the next call; True if one has begun."""
        held = self._held
        if self._form.opening[0] not in held:
            self._held = ""
            said.text += self._released(held)
            return False
        begun = [(at, head) for head in self._heads if (at := held.find(head)) >= 0]
        if not begun:
            cut = len(held) - max(overlap(held, head) for head in self._heads)
            self._held = held[cut:]
            said.text += self._released(held[:cut])
            return False
        at, head = min(begun)
        said.text += self._released(held[:at])
        if self.stopped:
            return False
        said.text, self._text = said.text + self._text, ""
        self._held = held[at + len(head) :]
        self._arguments = _Json()
        id = f"call_{secrets.token_hex(12)}"
        said.calls.append(CallPart(self._calls, id=id, name=self._heads[head]))
        self._calls += 1
        return True

    def _go_on_with_call(self, said: Said) -> bool:
        """Hand on arguments up to their end, then drop the closing; True when the call is complete."""
        arguments, index = self._arguments, self._calls - 1
        assert arguments is not None
        if not arguments.ended:
            length = arguments.feed(self._held)
            if length:
                said.calls.append(CallPart(index, self._held[:length]))
            self._held = self._held[length:]
        closing = self._form.closing
        if not arguments.ended or (len(self._held) < len(closing) and closing.startswith(self._held)):
            return False
        self._held = self._held.removeprefix(closing)
        self._arguments, self._after_call = None, True
        return True


class _Json:
    """Finds the end of a JSON value, which is followed by a closing brace, and knows the keys of its objects."""

    MARK = re.compile(r'["{}\[\],]')
    STRING_END = re.compile(r'[\\"]')

    def __init__(self) -> None:
        self.ended = False
        self._open: list[set[str] | None] = []
        """The keys of each object that is open; None for an array."""
        self._key: str | None = None
        self._expects_key = False
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; sets `ended` before the brace that does not."""
        at = 0
        while at < len(text) and not self.ended:
            if self._escaped:
                self._escaped = False
                self._note(text[at])
                at += 1
            elif self._in_string:
                found = self.STRING_END.search(text, at)
                self._note(text[at : found.start() if found else len(text)])
                at = found.end() if found else len(text)
                if found:
                    self._end_of_string(found[0])
            else:
                found = self.MARK.search(text, at)
                at = found.end() if found else len(text)
                if found:
                    self._between(found[0])
        return at - 1 if self.ended else len(text)

    def repeated_keys(self) -> list[str]:
        """What would come next, were it a key that its object has already: the rest of the key, or all of it."""
        keys = self._open[-1] if self._open else None
        if not keys or self._escaped:
            return []
        if (key := self._key) is not None:
            return [f'{known[len(key) :]}"' for known in keys if known.startswith(key)]
        before = ['"', ' "'] if self._expects_key else ['", "' if self._in_string else ', "']
        return [f'{each}{known}"' for each in before for known in keys]

    def _note(self, text: str) -> None:
        if self._key is not None:
            self._key += text

    def _end_of_string(self, mark: str) -> None:
        if mark == "\\":
            self._escaped = True
            self._note(mark)
            return
        self._in_string = False
        if self._key is not None and self._open and (keys := self._open[-1]) is not None:
            keys.add(self._key)
        self._key = None

    def _between(self, mark: str) -> None:
        if mark == '"':
            self._in_string = True
            self._key = "" if self._expects_key else None
        elif mark in "{[":
            self._open.append(set() if mark == "{" else None)
        elif mark in "}]":
            if self._open:
                self._open.pop()
            else:
                self.ended = True
        self._expects_key = mark == "{" or (mark == "," and bool(self._open) and self._open[-1] is not None)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself not counted."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
