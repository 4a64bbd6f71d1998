"""Capture the inputs of modules while a model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def capture_inputs(modules: Iterable[nn.Module], receive: Callable[[Any, Tensor], None]) -> Iterator[None]:
    """While it lasts, ``receive`` gets each of ``modules`` that is called, and its first input."""
    hooks = [
        one.register_forward_pre_hook(lambda module, inputs: receive(module, inputs[0])) for one in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
