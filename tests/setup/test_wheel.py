"""The built package carries everything a host needs, and nothing that runs by itself."""

import subprocess
import sys
import zipfile

import pytest

from tests.support.locks import REPOSITORY

ROOMS = {"everlearn", "train", "compress", "serve", "continual", "deploy"}
DATA = {".html", ".css", ".js", ".txt", ".mako", ".json", ".yaml", ".jinja", ".svg", ".ini"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths in a wheel built from the files git knows."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ".",
    ]
    subprocess.run(command, cwd=folder / "source", check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_it_has_every_room_and_no_other_package(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == ROOMS


def test_nothing_in_it_runs_when_python_starts(names: list[str]) -> None:
    assert not [name for name in names if name.endswith(".pth") or "sitecustomize" in name]


def test_it_carries_the_data_files_of_the_rooms(names: list[str]) -> None:
    files = {
        str(path.relative_to(REPOSITORY))
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*")
        if path.suffix in DATA
    }
    assert files
    assert files <= set(names)
    assert "everlearn/registry/migrations/versions/0001_registry.py" in names
