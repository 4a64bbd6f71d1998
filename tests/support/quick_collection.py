"""Garbage is not collected while pytest imports every room, and what was imported is never looked through again.

Both take time that no test needs: a fifth of the imports', and half a second for each full collection after them.
"""

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
