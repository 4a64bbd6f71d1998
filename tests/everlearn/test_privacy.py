"""Nobody but its owner can read what an installation keeps, whatever the umask and the home allow."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import create_engine

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key
from everlearn.registry.migrations import configuration
from everlearn.registry.registry import Registry
from everlearn.settings import FOLDERS, Settings


def open_to_others(home: Path) -> list[str]:
    """Everything below the home that its group or others may touch."""
    return [
        f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(home)}"
        for path in home.rglob("*")
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Settings]:
    """A home that everyone may enter, made by its user, whose umask lets everyone read."""
    before = os.umask(0)
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    yield Settings(home=home)
    os.umask(before)


def test_the_database_is_private_whatever_the_home_and_the_umask_allow(open_home: Settings) -> None:
    db = open_database(open_home)
    create_key(db, "k")
    names = {path.name for path in open_home.home.iterdir() if path.is_file()}
    assert names == {"everlearn.db", "everlearn.db-wal", "everlearn.db-shm"}
    for name in names:
        assert stat.S_IMODE((open_home.home / name).stat().st_mode) == 0o600


def test_folders_and_bundles_are_private(open_home: Settings, add: Any) -> None:
    registry = Registry(open_home)
    version = add(registry)
    for name in FOLDERS:
        assert stat.S_IMODE(open_home.directory(name).stat().st_mode) == 0o700
    assert not open_to_others(registry.path(version))


def test_a_home_that_an_earlier_version_left_readable_is_made_private_on_opening(open_home: Settings) -> None:
    home = open_home.home
    for name in FOLDERS:
        (home / name / "deep").mkdir(parents=True)
        (home / name / "deep" / "text").touch()
    old = create_engine(open_home.resolved_database_url())
    config = configuration()
    with old.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
    with old.connect() as reader:  # a process of the earlier version: its files beside the database are there
        reader.exec_driver_sql("SELECT 1")
        assert len(open_to_others(home)) >= 2 * len(FOLDERS) + 1
        open_database(open_home)
        assert open_to_others(home) == []
    (home / "files").chmod(0o755)
    open_home.directory("files")
    assert open_to_others(home) == []


def test_links_and_what_they_lead_to_stay_as_they_are(open_home: Settings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "shared").touch(mode=0o644)
    folder = open_home.home / "cache"
    folder.mkdir(mode=0o755)
    (folder / "link").symlink_to(elsewhere)
    open_home.directory("cache")
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    assert stat.S_IMODE((elsewhere / "shared").stat().st_mode) == 0o644


def test_files_that_programs_create_are_private(open_home: Settings) -> None:
    script = "import everlearn.cli as cli, sys; sys.argv = ['everlearn', 'keys', 'create', 'k']; cli.main()"
    environment = os.environ | {"EVERLEARN_HOME": str(open_home.home)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    assert open_to_others(open_home.home) == []


def test_a_file_that_its_user_named_for_others_keeps_to_their_own_umask(tmp_path: Path) -> None:
    code = """
import os, pathlib
os.umask(0o027)
from everlearn.privacy import keep_private, share
keep_private()
for name in ("kept", "shared"):
    pathlib.Path(name).write_text("")
share(pathlib.Path("shared"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"kept": 0o600, "shared": 0o640}


def test_a_folder_that_its_user_named_for_others_can_be_entered_at_any_depth(tmp_path: Path) -> None:
    code = """
import os, pathlib
os.umask(0o022)
from everlearn.privacy import keep_private, share_folder
keep_private()
inner = pathlib.Path("site/module")
inner.mkdir(parents=True)
(inner / "index.js").write_text("")
share_folder(pathlib.Path("site"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"site": 0o755, "module": 0o755, "index.js": 0o644}
