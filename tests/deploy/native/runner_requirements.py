"""``python -m tests.deploy.native.runner_requirements``: writes the runner's pins anew, from requirements/all.lock."""

from __future__ import annotations

import re

from deploy.edge.native.pack import PINS, REQUIREMENTS
from tests.conftest import REPOSITORY

HEAD = """\
# What deploy/edge/native/pack.py puts into the runner, as requirements/all.lock pins it. Written by:
#    python -m tests.deploy.native.runner_requirements
"""


def pinned() -> str:
    """Every pin of each requirement: some have one for each of several Pythons."""
    lock = (REPOSITORY / "requirements" / "all.lock").read_text()
    found = []
    for name in REQUIREMENTS:
        pins = re.findall(rf"^{re.escape(name)}==[^\n]*\\\n(?: +--hash=[^\n]*\n)+", lock, re.MULTILINE)
        assert pins, name
        found += pins
    return HEAD + "".join(found)


if __name__ == "__main__":
    PINS.write_text(pinned())
