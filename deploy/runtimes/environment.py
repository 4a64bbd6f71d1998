"""Which Python runs a runtime's packages: everlearn's own where they are installed in it, else the environment beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.runtimes.table import RUNTIMES
from everlearn.errors import Unavailable

INSTALL = "make install-runtimes"
ENVIRONMENT = "-runtimes"
"""What follows the name of everlearn's environment in that of the other: .venv-runtimes."""
CONVERTS = {"torch": "2.13.0", "transformers": "5.14.1"}
ASK = (
    "import importlib.metadata as m, json, sys\n"
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


def interpreter_for(runtime: str) -> str | None:
    """The Python to convert with: None is everlearn's own.

    Raises Unavailable with the command that installs what is missing, and where which version was found.
    """
    wanted = RUNTIMES[runtime].packages
    own = {name: _own(name) for name in wanted}
    if own == wanted:
        return None
    beside = Path(sys.prefix).with_name(Path(sys.prefix).name + ENVIRONMENT)
    python = beside / "bin" / "python"
    if not python.exists():
        raise Unavailable(f"{RUNTIMES[runtime].title} needs {_list(wanted)}: {INSTALL} puts them in {beside}")
    found = _installed(python)
    wrong = {name: said for name, said in {**CONVERTS, **wanted}.items() if not _is(found.get(name), said)}
    if wrong:
        has = ", ".join(f"{name} {found.get(name, 'missing')}" for name in wrong)
        raise Unavailable(f"{beside} has not {_list(wrong)} ({has}): {INSTALL} renews it")
    return str(python)


def _own(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed(python: Path) -> dict[str, str]:
    try:
        said = subprocess.run(
            [python, "-I", "-c", ASK], capture_output=True, text=True, timeout=60, check=True
        )
        return json.loads(said.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"{python} does not start ({error}): {INSTALL} renews it") from None


def _is(found: str | None, wanted: str) -> bool:
    """Whether this is the version, whatever build of it."""
    return found is not None and found.partition("+")[0] == wanted


def _list(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name}=={said}" for name, said in packages.items())
