"""docs/architecture.md and its picture say what the sources say; every file that the docs name exists."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.setup.architecture_picture import (
    COMMAND,
    KERNEL,
    PICTURE,
    ROLES,
    arrows,
    rooms,
)
from tests.setup.test_layers import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TOPS = "|".join([*ROLES, "tests", "benchmarks", "docs", "requirements"])
FILE = re.compile(
    rf"(?<![\w./-])((?:{TOPS})/[\w./-]*\.(?:py|ya?ml|jsonl?|lock|txt|md|html|svg|png))(?![\w/])"
)
MODULE = re.compile(rf"python -m ((?:{TOPS})(?:\.\w+)*)")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")
ROW = re.compile(r"^\| `([\w./]+\.py)` \| (.+) \|$", re.MULTILINE)
SYMBOL = re.compile(r"`(?:[A-Z]\w*|\w+\(\))`")
GROWTH = 0.25
"""How far a room's size may be from what the picture says."""


@pytest.fixture(scope="module")
def drawn() -> ElementTree.Element:
    return ElementTree.fromstring(PICTURE.read_text())


def test_the_picture_shows_every_room_and_folder(drawn: ElementTree.Element) -> None:
    shown = {each.get("data-folder") for each in drawn.iter() if each.get("data-folder")}
    assert shown == {f"{room.name}/{folder}" for room in rooms().values() for folder in room.folders}, COMMAND
    assert {each.get("data-room") for each in drawn.iter() if each.get("data-room")} == set(ROLES)


def test_the_picture_shows_every_import_between_rooms(drawn: ElementTree.Element) -> None:
    shown = {(each.get("data-from"), each.get("data-to")) for each in drawn.iter() if each.get("data-from")}
    assert shown == set(arrows()), COMMAND
    assert not [pair for pair in shown if pair[0] == KERNEL]


def test_the_picture_shows_about_the_size_of_each_room(drawn: ElementTree.Element) -> None:
    for each in drawn.iter():
        if (name := each.get("data-room")) and (now := rooms()[name].lines) >= 1000:
            assert int(each.get("data-lines") or 0) == pytest.approx(now, rel=GROWTH), f"{name}: {COMMAND}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_module_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in FILE.findall(text) if not (REPOSITORY / path).is_file()]
    missing += [name for name in MODULE.findall(text) if find_spec(name) is None]
    for path, heading in LINK.findall(text):
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            missing.append(f"{path}#{heading}")
    assert not missing


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_symbol_of_a_path_is_in_its_file() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert len(rows) > 30
    for path, told in rows:
        defined = {
            node.name
            for node in ast.walk(ast.parse((REPOSITORY / path).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        named = {each.strip("`()") for each in SYMBOL.findall(told)}
        assert named <= defined, f"{path}: {named - defined}"
