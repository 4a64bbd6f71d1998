"""Commands that other packages bring by entry points, by the example in CONTRIBUTING.md."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from everlearn.registry.registry import Registry
from everlearn.settings import Settings

CONTRIBUTING = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()


def example(name: str) -> str:
    """A code block of CONTRIBUTING.md."""
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", CONTRIBUTING, re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def install(packages: Path, module: str, source: str, entry: str) -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    (packages / f"{module}.py").write_text(source)
    info = packages / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[everlearn.commands]\n{entry}\n")


def everlearn(packages: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(packages), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths, "EVERLEARN_HOME": str(home)}
    command = [sys.executable, "-m", "everlearn", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)


def test_the_example_adds_a_command(packages: Path, settings: Settings, add: Any) -> None:
    entries = tomllib.loads(example("entry point"))["project"]["entry-points"]["everlearn.commands"]
    [(name, target)] = entries.items()
    install(packages, target.partition(":")[0], example("command"), f"{name} = {target}")
    version = add(Registry(settings))
    said = everlearn(packages, settings.home, name, version.ref)
    assert (said.returncode, said.stdout, said.stderr) == (0, f"{version.manifest.size_bytes} bytes\n", "")
    assert "Print the size of a version's files." in everlearn(packages, settings.home, "--help").stdout


@pytest.mark.parametrize(("source", "why"), [
    ("import nothing_of_this_name", "ModuleNotFoundError"),
    ("commands = 1", "a int, no typer.Typer"),
    ("import typer\ncommands = typer.Typer()\n@commands.command()\ndef serve(): print('mine')\n", "the name of serve is taken"),
])  # fmt: skip
def test_a_package_that_cannot_add_its_commands_is_left_out_with_a_warning(
    packages: Path, settings: Settings, source: str, why: str
) -> None:
    install(packages, "zz_broken", source, "zz = zz_broken:commands")
    said = everlearn(packages, settings.home, "ls")
    assert said.returncode == 0
    assert "warning: the commands 'zz' of zz_broken are left out" in said.stderr and why in said.stderr
    assert "mine" not in everlearn(packages, settings.home, "serve", "--help").stdout


def test_a_file_of_the_working_directory_stands_in_for_no_room(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('the user's own file')\n")
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", "everlearn", "ls"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "EVERLEARN_HOME": str(tmp_path / "home")},
        timeout=60,
    )
    assert done.returncode == 0 and "user" not in done.stdout
    assert done.stderr.startswith("No models yet")


def test_sources_newer_than_the_installation_say_what_to_do(tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as metadata; metadata.entry_points = lambda **_: ()\n"
        "import sys; sys.argv = ['everlearn', 'version']\n"
        "from everlearn.cli import main; main()\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "EVERLEARN_HOME": str(tmp_path / "home")},
        timeout=60,
    )
    assert done.returncode == 0 and "install it anew (make install-serve" in done.stderr
