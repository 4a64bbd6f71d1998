"""What requests have used so far, and what those had used that broke off: their client pays for that, too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.engines.onnx.http import Exchange

KEPT = 4096
"""Requests that broke off are remembered until so many others did; a gateway asks within a second."""


class Used:
    """By the number that the gateway gave each request."""

    def __init__(self) -> None:
        self._open: dict[str, Exchange] = {}
        self._broken_off: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @contextmanager
    def counting(self, number: str, exchange: Exchange) -> Generator[None]:
        """While a request is worked on."""
        self._open[number] = exchange
        complete = False
        try:
            yield
            complete = not exchange.gone
        finally:
            self._open.pop(number, None)
            if number and not complete and exchange.usage:
                self._broken_off[number] = exchange.usage()
                if len(self._broken_off) > KEPT:
                    self._broken_off.popitem(last=False)

    def of(self, number: str) -> dict[str, Any] | None:
        """OpenAI's usage object; None where nothing of it has been counted."""
        exchange = self._open.get(number) if number else None
        if exchange is None:
            return self._broken_off.get(number)
        return exchange.usage() if exchange.usage else None
