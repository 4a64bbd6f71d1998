"""The records of a JSON file, one at a time: a list of them, an object that holds one list, or one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from train.data.reading.forms import strict_json
from train.data.reading.lines import BOM, Reader, decoded, wrong
from train.data.reading.schema import UNLABELLED, Schema

RIGHT = 'a list of objects, [{"messages": […]}, …], or one object a line, in UTF-8'
RIGHT_LINE = 'one JSON object a line, in UTF-8, such as {"messages": […]}'
OUTSIDE = re.compile(rb'["{}\[\]]')
INSIDE = re.compile(rb'["\\]')
ENDS_SCALAR = re.compile(rb"[,\]}\s]")
NOT_SPACE = re.compile(rb"[^ \t\r\n]")
LOOK_BYTES = 2**15


def parse(text: str, where: str, right: str = RIGHT_LINE) -> Any:
    """The value that ``text`` is. Raises InvalidInput that begins with ``where``."""
    try:
        return strict_json(text)
    except RecursionError:
        raise wrong(f"{where}: is nested too deeply", f"Right would be {right}") from None
    except ValueError as error:
        what = getattr(error, "msg", None) or str(error)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        glimpse = text if len(text) <= 60 else text[:57] + "…"
        raise wrong(f"{where}: is not JSON: {what}{column}: {glimpse}", f"Right would be {right}") from None


def records(reader: Reader, schema: Schema = UNLABELLED) -> Iterator[tuple[int, Any]]:
    """Each with the line that it begins in; never more than ``max_line_bytes`` of one in memory.

    Raises InvalidInput naming the line.
    """
    values = _Values(reader, schema)
    if values.peek() == b"[":
        yield from values.elements()
    elif values.wraps_a_list():
        yield from values.inner_list()
    else:
        while values.peek():
            yield values.value()
        return
    if values.peek():
        raise values.fault("has more after its end", "Keep one list")


class _Values:
    """A JSON text, read from the front."""

    def __init__(self, reader: Reader, schema: Schema) -> None:
        self._reader, self._schema = reader, schema
        self._most = reader.limits.max_line_bytes
        self._buffer, self._at, self._line, self._marked = b"", 0, 1, False
        self._fill()
        self._buffer = self._buffer.removeprefix(BOM)

    def fault(self, what: str, right: str = f"Right would be {RIGHT}") -> Exception:
        return wrong(f"{self._reader.name}:{self._line}: {what}", right)

    def peek(self) -> bytes:
        """The next character that is no space; nothing at the end."""
        while True:
            if found := NOT_SPACE.search(self._buffer, self._at):
                self._move(found.start())
                return found[0]
            self._move(len(self._buffer))
            self._forget()
            if not self._fill():
                return b""

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Those of the list that begins here."""
        begin = self._line
        self._move(self._at + 1)
        while True:
            if (first := self.peek()) == b"]":
                break
            if not first:
                self._line = begin
                raise self.fault("is not JSON: the list that begins here does not end")
            yield self.value()
            if (after := self.peek()) == b",":
                self._move(self._at + 1)
                if self.peek() == b"]":
                    raise self.fault("is not JSON: a comma before the list's end")
            elif after and after != b"]":
                raise self.fault("is not JSON: a comma is missing")
        self._move(self._at + 1)

    def value(self) -> tuple[int, Any]:
        """The value that begins here, with its line."""
        if self._at > LOOK_BYTES:
            self._forget()
        self.peek()
        line = self._line
        content = self._cut()
        where = f"{self._reader.name}:{line}"
        return line, parse(decoded(content, where, RIGHT), where, RIGHT)

    def wraps_a_list(self) -> bool:
        """Whether here is an object of a list of objects that is no record's own; then that list comes next."""
        at, line, self._marked = self._at, self._line, True
        try:
            if self.peek() == b"{" and self._list_within(at):
                return True
        finally:
            self._marked = False
        self._at, self._line = at, line
        return False

    def inner_list(self) -> Iterator[tuple[int, Any]]:
        """The list's elements; what comes beside it must be no other list of objects."""
        yield from self.elements()
        while (after := self.peek()) == b",":
            self._move(self._at + 1)
            _, key = self.value()
            if key in self._schema.starts:
                raise self.fault(
                    f'has a list, and "{key}" beside it', "Keep a list of examples, or one example"
                )
            if self.peek() != b":":
                raise self.fault("is not JSON: a colon is missing")
            self._move(self._at + 1)
            line, value = self.value()
            if isinstance(value, list) and any(isinstance(each, dict) for each in value):
                self._line = line
                raise self.fault(f"has a second list, {json.dumps(key)[:80]}", "Keep one list of examples")
        if after != b"}":
            raise self.fault("is not JSON: the object does not end")
        self._move(self._at + 1)

    def _list_within(self, begin: int) -> bool:
        while self.peek() in (b"{", b",") and self._at - begin < LOOK_BYTES:
            self._move(self._at + 1)
            if self.peek() != b'"':
                return False
            key = self._cut()[1:-1].decode(errors="replace")
            if self.peek() != b":" or key in self._schema.starts:
                return False
            self._move(self._at + 1)
            kind = self.peek()
            if kind == b"[":
                mark = self._at, self._line
                self._move(self._at + 1)
                is_list = self.peek() == b"{" and key not in self._schema.lists
                self._at, self._line = mark
                return is_list
            if kind in (b"{", b""):
                return False
            self._cut()
        return False

    def _cut(self) -> bytes:
        """The bytes of the value that begins here, and goes past it."""
        begin = at = self._at
        if self._buffer[at : at + 1] not in (b"{", b"[", b'"'):
            return self._cut_scalar()
        depth, inside = 0, False
        while True:
            found = (INSIDE if inside else OUTSIDE).search(self._buffer, at)
            if (found.end() if found else len(self._buffer)) - begin > self._most:
                raise self.fault(f"the example is longer than {self._most} bytes", "Split it into several")
            if not found:
                at = max(at, len(self._buffer))
                if not self._fill():
                    raise self.fault("is not JSON: the file ends within what begins here")
                continue
            at = found.end()
            if found[0] == b"\\":
                at += 1
            elif found[0] == b'"':
                inside = not inside
            else:
                depth += 1 if found[0] in b"{[" else -1
            if depth <= 0 and not inside:
                content = self._buffer[begin:at]
                self._move(at)
                return content

    def _cut_scalar(self) -> bytes:
        begin = self._at
        while not (found := ENDS_SCALAR.search(self._buffer, begin)):
            if len(self._buffer) - begin > self._most:
                raise self.fault(f"the example is longer than {self._most} bytes", "Split it into several")
            if not self._fill():
                break
        end = max(found.start() if found else len(self._buffer), begin + 1)
        content = self._buffer[begin:end]
        self._move(end)
        return content

    def _move(self, to: int) -> None:
        self._line += self._buffer.count(b"\n", self._at, to)
        self._at = to

    def _fill(self) -> bool:
        """One more chunk; False at the end."""
        chunk = self._reader.chunk(self._line)
        self._buffer += chunk
        return bool(chunk)

    def _forget(self) -> None:
        """What was passed."""
        if not self._marked:
            self._buffer, self._at = self._buffer[self._at :], 0
