"""Which runtimes can be tested on this machine."""

from __future__ import annotations

import pytest

from deploy.runtimes.environment import interpreter_for
from deploy.runtimes.table import RUNTIMES
from everlearn.errors import Unavailable


def why_not(runtime: str) -> str | None:
    """Why the runtime's packages cannot be used here; None where they can."""
    try:
        interpreter_for(runtime)
    except Unavailable as error:
        return error.message
    return None


def each_runtime(*names: str) -> list[object]:
    """Parameters of a test: these runtimes, or all of them; skipped with the reason where one is not installed."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason or ""))
        for name in names or RUNTIMES
        for reason in [why_not(name)]
    ]
