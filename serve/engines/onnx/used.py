"""Count what requests have used so far, those that broke off included: their client pays for that, too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from serve.engines.onnx.responder import Responder

KEPT = 4096
"""Requests that broke off are remembered until so many others did; a gateway asks within a second."""


class Used:
    """By the number that the gateway gave each request."""

    def __init__(self) -> None:
        self._open: dict[str, Responder] = {}
        self._broken_off: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @contextmanager
    def counting(self, number: str, responder: Responder) -> Generator[None]:
        """While a request is worked on."""
        self._open[number] = responder
        complete = False
        try:
            yield
            complete = not responder.gone
        finally:
            self._open.pop(number, None)
            if number and not complete and responder.usage:
                self._broken_off[number] = responder.usage()
                if len(self._broken_off) > KEPT:
                    self._broken_off.popitem(last=False)

    def of(self, number: str) -> dict[str, Any] | None:
        """OpenAI's usage object; None where nothing of it has been counted."""
        responder = self._open.get(number) if number else None
        if responder is None:
            return self._broken_off.get(number)
        return responder.usage() if responder.usage else None
