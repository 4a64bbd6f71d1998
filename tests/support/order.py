"""How pytest-xdist shares the tests out: a file goes to one worker, and tests/e2e as a whole, whose files share servers."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # pyright: ignore[reportMissingTypeStubs]

SHARED = "tests/e2e/"


class Shared(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return SHARED if nodeid.startswith(SHARED) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shared:
    return Shared(config, log)
