"""The budget of one rendering of a template: CPU time, and bytes.

Python cannot stop a thread, so what a template does asks here before, and raises TooMuch where it would not end.
"""

# pyright: basic
# Values in a template have any type.

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

CPU_LIMIT_S = 2.0
"""Of one rendering, in the thread that does it."""
BASE_BYTES, INPUT_TIMES = 128 * 1024**2, 32
"""All values that a rendering makes may together have so many bytes, and so many times those of its messages."""
VALUE_SHARE = 8
"""One value may be this part of them all."""
ELEMENT_BYTES = 16
STEPS_PER_LOOK = 32


class TooMuch(TemplateError):
    """A template that would not end, or makes something too large."""


class Budget:
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


current_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def spending(given: Any) -> Iterator[Budget]:
    """Work on a budget for ``given``, a template's source or its values: whatever goes wrong in it is a TemplateError."""
    token = current_budget.set(Budget(given))
    try:
        yield current_budget.get()
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
        current_budget.reset(token)


class Counted:
    """Something to loop over that looks at the clock; as long as what it counts, where that has a length."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        return current_budget.get().counted(self._values)

    def __len__(self) -> int:
        return len(self._values)  # pyright: ignore[reportArgumentType]
