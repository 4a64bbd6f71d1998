"""The runner as one file: in roots that hold it, a model, and Debian's Python alone."""

from __future__ import annotations

from deploy.edge.native.pack import PINS
from tests.deploy.native.runner_requirements import pinned


def test_its_pins_are_the_lock_s() -> None:
    assert PINS.read_text() == pinned(), "run python -m tests.deploy.native.runner_requirements"
