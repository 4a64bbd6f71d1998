"""Jinja whose templates end: in bounded time, in bounded memory, with one kind of error.

A chat template is a program of a stranger's, and may be harmless until a certain message comes. Python cannot stop
a thread, so the template stops itself: loops and calls look at the clock, and whatever may make something large (an
operator, a filter, a method) is asked before. What a template can reach is a list of what is allowed.
"""

# pyright: basic
# Values in a template have any type.

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

CPU_LIMIT_S = 2.0
"""Of one rendering, in the thread that does it."""
MAX_SOURCE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 16_000_000
BASE_BYTES, INPUT_TIMES = 128 * 1024**2, 32
"""All values that a rendering makes may together have so many bytes, and so many times those of its messages."""
VALUE_SHARE = 8
"""One value may be this part of them all."""
ELEMENT_BYTES = 16
STEPS_PER_LOOK = 32
MAX_INTEGER_BITS = 10_000
MAX_WIDTH = 10_000
MAX_INDENT = 16
MAX_DIGITS = MAX_INTEGER_BITS // 6
"""Of a text that is read as a number, in any base."""
MAX_PRECISION = 100
MAX_SOUGHT_CHARS = 1000
"""What is sought from a text's end, or cut from its ends: the search may take so many times the text."""

FILTERS = frozenset(
    [
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "wordcount",
    ]
)
GLOBALS = frozenset(("range", "dict", "namespace", "joiner", "cycler"))
FORBIDDEN_METHODS = frozenset(
    ("translate", "maketrans", "expandtabs", "encode", "to_bytes", "from_bytes", "fromkeys")
)
PADDING = frozenset(("ljust", "rjust", "center", "zfill"))
SPLITTING = frozenset(("split", "rsplit", "splitlines"))
SEEKING = frozenset(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"))
LOOKING = frozenset(("get", "items", "keys", "values", "index", "count", "find", "startswith", "endswith"))
"""Methods that make nothing new."""


class TooMuch(TemplateError):
    """A template that would not end, or makes something too large."""


class Work:
    """What one rendering, or one compilation, may still do."""

    def __init__(self, given: Any) -> None:
        self._end_s = time.thread_time() + CPU_LIMIT_S
        self._steps = 0
        self.largest = sys.maxsize
        self._left = BASE_BYTES + INPUT_TIMES * self.size(given)
        self.largest = self._left // VALUE_SHARE

    def step(self, size_bytes: int = 0) -> None:
        """Raises TooMuch where the time is over; large things are many steps."""
        self._steps += 1 + size_bytes // 1024
        if self._steps >= STEPS_PER_LOOK:
            self._steps = 0
            if time.thread_time() > self._end_s:
                raise TooMuch(f"takes more than {CPU_LIMIT_S:g} s: it loops without end")

    def expect(self, size_bytes: int) -> None:
        """Before something is made. Raises TooMuch where it would be too large."""
        if size_bytes > self.largest or size_bytes > self._left:
            raise TooMuch("makes something too large")
        self.step(size_bytes)

    def made(self, value: Any, deep: bool = False) -> Any:
        """``value``, accounted for; ``deep`` where it may hold the same thing many times over."""
        if isinstance(value, str | bytes):
            taken = sys.getsizeof(value)
        elif isinstance(value, Iterator):
            return self.counted(value, deep)
        elif isinstance(value, list | tuple | dict | set):
            if deep:
                self.size(value)
            taken = ELEMENT_BYTES * len(value)
        else:
            self.step()
            return value
        self.expect(taken)
        self._left -= taken
        return value

    def counted(self, values: Iterable[Any], deep: bool = False) -> Iterator[Any]:
        for value in values:
            self.step()
            yield self.made(value, deep=True) if deep else value

    def size(self, value: Any) -> int:
        """What ``value`` takes as text, about, in bytes. Raises TooMuch where that is too large for one value."""
        if isinstance(value, str | bytes):
            return sys.getsizeof(value)
        total, pending = 0, [value]
        while pending:
            one = pending.pop()
            total += sys.getsizeof(one) if isinstance(one, str | bytes) else ELEMENT_BYTES
            if isinstance(one, Namespace):
                raise TooMuch("puts a namespace into a list, a dictionary or a text")
            if isinstance(one, Mapping):
                pending.extend(one.keys())
                pending.extend(one.values())
            elif isinstance(one, list | tuple | set | frozenset):
                pending.extend(one)
            if total + len(pending) * ELEMENT_BYTES > self.largest:
                raise TooMuch("makes something too large")
        self.step(total)
        return total


_now: ContextVar[Work] = ContextVar("work")


@contextmanager
def _bounded(given: Any) -> Iterator[Work]:
    """One piece of work: whatever goes wrong in it is a TemplateError."""
    token = _now.set(Work(given))
    try:
        yield _now.get()
    except TemplateError:
        raise
    except RecursionError:
        raise TooMuch("is nested too deeply, or calls itself without end") from None
    except MemoryError:
        raise TooMuch("needs too much memory") from None
    except OverflowError:
        raise TooMuch("counts too far") from None
    except Exception as error:  # noqa: BLE001 (whatever a template's operators and filters raise)
        raise TemplateError(f"{type(error).__name__}: {error}") from None
    finally:
        _now.reset(token)


class BoundedTemplate(Template):
    """As jinja2's; everything that rendering raises is a TemplateError."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        context = dict(*args, **kwargs)
        with _bounded(list(context.values())) as work:
            pieces: list[str] = []
            length = 0
            for piece in self.root_render_func(self.new_context(context)):
                work.step()
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
        super().__init__(*args, finalize=_written, **kwargs)
        self.filters = {name: _checked(name, self.filters[name]) for name in FILTERS}
        self.filters["tojson"] = _to_json
        self.filters |= {COUNTED: _counted, MADE: _made, SLICED: _sliced, JOINED: _joined}
        self.globals = {name: self.globals[name] for name in GLOBALS}

    def concat(self, pieces: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What macros and blocks have written."""
        work = _now.get()
        texts = list(pieces)
        work.expect(sum(map(len, texts)))
        return work.made("".join(texts))

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if len(source) > MAX_SOURCE_CHARS:
            raise TooMuch(f"is longer than {MAX_SOURCE_CHARS} characters")
        with _bounded(source):
            return super().from_string(source, *args, **kwargs)

    def parse(self, source: str, *args: Any, **kwargs: Any) -> nodes.Template:
        with _bounded(source):
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
            work = _now.get()
            work.expect((1 + layout.count("{")) * work.size((args, kwargs)))
            return formatted(*args, **kwargs)

        return run

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        work = _now.get()
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
            work.expect(max(count, 0) * max(work.size(left), work.size(right)))
        elif operator == "%" and isinstance(left, str | bytes):
            _check_percent(left, right)
        elif operator == "+" and isinstance(left, str | bytes | list | tuple):
            work.expect(work.size(left) + work.size(right))
        return work.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        work = _now.get()
        work.step()
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if isinstance(owner, str | bytes):
            args = _check_method(owner, name, args, kwargs)
        result = super().call(context, function, *args, **kwargs)
        return result if name in LOOKING else work.made(result, deep=function is dict)


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
            _check_integer(node.value)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through(node, SLICED) if isinstance(node.arg, nodes.Slice) else node


def _through(node: Any, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.environment = node.environment
    return made


class _Counted:
    """Something to loop over that looks at the clock; as long as what it counts, where that has a length."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        return _now.get().counted(self._values)

    def __len__(self) -> int:
        return len(self._values)  # pyright: ignore[reportArgumentType]


def _counted(values: Any) -> Any:
    return _Counted(values) if isinstance(values, Iterable) else values


def _made(value: Any) -> Any:
    return _now.get().made(value, deep=True)


def _sliced(value: Any) -> Any:
    return _now.get().made(value)


def _joined(pieces: tuple[Any, ...]) -> str:
    return _now.get().made("".join(map(_text, pieces)))


def _written(value: Any) -> Any:
    """What ``{{ … }}`` may write."""
    return _text(value) if isinstance(value, Namespace) else value


def _text(value: Any) -> str:
    if isinstance(value, Namespace):
        raise TooMuch("puts a namespace into a text")
    return value if isinstance(value, str) else str(value)


# Filters and methods ------------------------------------------------------------------------------------------


def _checked(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    place = 1 if hasattr(filter, "jinja_pass_arg") else 0

    @functools.wraps(filter)
    def run(*args: Any, **kwargs: Any) -> Any:
        work = _now.get()
        value = args[place] if len(args) > place else None
        if isinstance(value, Iterator):
            value = work.counted(value)
        elif isinstance(value, str | list | tuple | dict | range | _Counted) and name not in LOOKING_FILTERS:
            work.expect(ELEMENT_BYTES * len(value))
        if check := FILTER_CHECKS.get(name):
            value = check(work, value, args[place + 1 :], kwargs)
        return work.made(filter(*args[:place], value, *args[place + 1 :], **kwargs), deep=name == "map")

    return run


LOOKING_FILTERS = frozenset(
    "abs count d default first float int last length round safe string trim lower upper".split()  # noqa: SIM905
)


def _check_join(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    separator = args[0] if args else kwargs.get("d", "")
    values = list(work.counted(value)) if isinstance(value, Iterable) else value
    if isinstance(values, list):
        work.expect(work.size(values) + len(values) * sys.getsizeof(separator))
    return values


def _check_replace(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old, new = ((*args, "", "")[:2]) if len(args) > 1 else (kwargs.get("old", ""), kwargs.get("new", ""))
    text = _text(value)
    work.expect(sys.getsizeof(text) + (text.count(str(old)) * sys.getsizeof(str(new))))
    return text


def _check_indent(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    width = args[0] if args else kwargs.get("width", 4)
    step = len(width) if isinstance(width, str) else int(width)
    text = _text(value)
    work.expect(sys.getsizeof(text) + (len(text.splitlines()) + 1) * max(step, 0))
    return text


def _check_format(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _check_percent(_text(value), kwargs or args)
    return value


def _check_sum(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(kwargs.get("start", args[1] if len(args) > 1 else 0), int | float):
        raise TooMuch("sums what is no number")
    return value


def _check_int(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise TooMuch("computes with numbers that are too large")
    return value


def _check_round(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    precision = args[0] if args else kwargs.get("precision", 0)
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise TooMuch("computes with numbers that are too large")
    return value


def _check_trim(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _check_sought(args[0] if args else kwargs.get("chars"))
    return value


def _check_text(work: Work, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _written(value)


FILTER_CHECKS: dict[str, Callable[[Work, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "join": _check_join,
    "replace": _check_replace,
    "indent": _check_indent,
    "format": _check_format,
    "int": _check_int,
    "round": _check_round,
    "sum": _check_sum,
    "trim": _check_trim,
    "string": _check_text,
}


def _check_percent(layout: str | bytes, values: Any) -> None:
    work = _now.get()
    text = layout if isinstance(layout, str) else layout.decode("latin-1")
    if re.search(r"%\((?![^()]*\))|%(\([^()]*\))?[^%a-zA-Z]*(\d{4}|\*)", text):
        raise TooMuch("pads a text too far")
    work.expect((1 + text.count("%")) * work.size(values))


def _check_integer(value: int) -> None:
    if value.bit_length() > MAX_INTEGER_BITS:
        raise TooMuch("computes with numbers that are too large")


def _check_sought(value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_SOUGHT_CHARS:
        raise TooMuch("looks for too long a text")


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a text's method, where its result cannot be too large."""
    work = _now.get()
    if name in PADDING and any(isinstance(one, int) and one > MAX_WIDTH for one in args):
        raise TooMuch("pads a text too far")
    if name in SEEKING and args:
        _check_sought(args[0])
    if name == "join" and args:
        values = list(work.counted(args[0]))
        work.expect(work.size(values) + len(values) * sys.getsizeof(owner))
        return (values,)
    if name == "replace" and len(args) > 1 and isinstance(args[1], str | bytes):
        work.expect(sys.getsizeof(owner) + owner.count(args[0]) * sys.getsizeof(args[1]))
    if name in SPLITTING:
        separator = args[0] if args and isinstance(args[0], str | bytes) and args[0] else None
        pieces = owner.count(separator) if separator else len(owner) // 2
        work.expect(ELEMENT_BYTES * pieces)
    return args


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """With the options that transformers gives templates."""
    for written in (indent, *(separators or ())):
        if (len(written) if isinstance(written, str) else written or 0) > MAX_INDENT:
            raise TooMuch("writes JSON too far apart")
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _now.get().made(text)
