"""Jinja whose templates end: in bounded time, in bounded memory, with one kind of error.

A chat template is a program of a stranger's, and may be harmless until a certain message comes. Python cannot stop
a thread, so the template stops itself: loops and calls look at the clock, and whatever may make something large asks
before. What a template can reach is a list of what is allowed. How much it may do, ``budget`` says; what filters and
methods ask, ``bounded_filters``.
"""

# pyright: basic
# Values in a template have any type.

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from everlearn.chat.bounded_filters import (
    FILTERS,
    LOOKING,
    MAX_INTEGER_BITS,
    check_integer,
    check_method,
    check_percent,
    checked,
    to_json,
    to_text,
    written,
)
from everlearn.chat.budget import Counted, TooMuch, current_budget, spending

MAX_SOURCE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 16_000_000
FORBIDDEN_METHODS = frozenset(
    ("translate", "maketrans", "expandtabs", "encode", "to_bytes", "from_bytes", "fromkeys")
)
GLOBALS = frozenset(("range", "dict", "namespace", "joiner", "cycler"))


class BoundedTemplate(Template):
    """As jinja2's; everything that rendering raises is a TemplateError."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        context = dict(*args, **kwargs)
        with spending(list(context.values())) as budget:
            pieces: list[str] = []
            length = 0
            for piece in self.root_render_func(self.new_context(context)):
                budget.step()
                pieces.append(piece)
                length += len(piece)
                if length > MAX_OUTPUT_CHARS:
                    raise TooMuch(f"writes more than {MAX_OUTPUT_CHARS} characters")
            return "".join(pieces)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        yield self.render(*args, **kwargs)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which every loop, call, filter and operator is accounted for."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    template_class: ClassVar[type[Template]] = BoundedTemplate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, finalize=written, **kwargs)
        self.filters = {name: checked(name, self.filters[name]) for name in FILTERS}
        self.filters["tojson"] = to_json
        self.filters |= {COUNTED: _counted, MADE: _made, SLICED: _sliced, JOINED: _joined}
        self.globals = {name: self.globals[name] for name in GLOBALS}

    def concat(self, pieces: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What macros and blocks have written."""
        budget = current_budget.get()
        texts = list(pieces)
        budget.expect(sum(map(len, texts)))
        return budget.made("".join(texts))

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if len(source) > MAX_SOURCE_CHARS:
            raise TooMuch(f"is longer than {MAX_SOURCE_CHARS} characters")
        with spending(source):
            return super().from_string(source, *args, **kwargs)

    def parse(self, source: str, *args: Any, **kwargs: Any) -> nodes.Template:
        with spending(source):
            return super().parse(source, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Accounting().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in FORBIDDEN_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        layout: str = value.__self__

        @functools.wraps(formatted)
        def run(*args: Any, **kwargs: Any) -> str:
            if re.search(r"\d{4}|:[^}]*\{", layout):
                raise TooMuch("pads a text too far")
            budget = current_budget.get()
            budget.expect((1 + layout.count("{")) * budget.size((args, kwargs)))
            return formatted(*args, **kwargs)

        return run

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = current_budget.get()
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = (
                (left.bit_length() * max(right, 1))
                if operator == "**"
                else left.bit_length() + right.bit_length()
            )
            if bits > MAX_INTEGER_BITS:
                raise TooMuch("computes with numbers that are too large")
        elif operator == "*":
            count = next((side for side in (left, right) if isinstance(side, int)), 1)
            budget.expect(max(count, 0) * max(budget.size(left), budget.size(right)))
        elif operator == "%" and isinstance(left, str | bytes):
            check_percent(left, right)
        elif operator == "+" and isinstance(left, str | bytes | list | tuple):
            budget.expect(budget.size(left) + budget.size(right))
        return budget.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        budget = current_budget.get()
        budget.step()
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if isinstance(owner, str | bytes):
            args = check_method(owner, name, args, kwargs)
        result = super().call(context, function, *args, **kwargs)
        return result if name in LOOKING else budget.made(result, deep=function is dict)


# What the compiler puts around expressions; no template can write these names. ---------------------------------

COUNTED, MADE, SLICED, JOINED = "(counted)", "(made)", "(sliced)", "(joined)"


class _Accounting(NodeTransformer):
    """Loops count, and what literals, slices and ``~`` make is accounted for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through(node.iter, COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through(nodes.Tuple(node.nodes, "load", lineno=node.lineno), JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through(node, MADE) if node.items else node

    visit_Dict = visit_List  # pyright: ignore[reportAssignmentType]

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through(node, MADE) if node.ctx == "load" and node.items else node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int):
            check_integer(node.value)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through(node, SLICED) if isinstance(node.arg, nodes.Slice) else node


def _through(node: Any, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.environment = node.environment
    return made


def _counted(values: Any) -> Any:
    return Counted(values) if isinstance(values, Iterable) else values


def _made(value: Any) -> Any:
    return current_budget.get().made(value, deep=True)


def _sliced(value: Any) -> Any:
    return current_budget.get().made(value)


def _joined(pieces: tuple[Any, ...]) -> str:
    return current_budget.get().made("".join(map(to_text, pieces)))
