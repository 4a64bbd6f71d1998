"""`everlearn data show`: the numbers of the card, and no text that runs."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everlearn.errors import Corrupt
from tests.support.serve.browser import CHROMIUM, HOSTILE, IN_A_BROWSER
from train.cli import commands
from train.data.options import DataOptions
from train.data.page.card_page import card_page
from train.data.prepare import prepare

TITLE = "</pre><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    texts = [f"{HOSTILE}{TITLE} says the text number {n}, and more." for n in range(40)]
    records = [*texts, texts[0], "short", f"{TITLE * 30}\n" + "again and again the same\n" * 40]
    name = "<img src=x onerror=alert(1)>.jsonl"
    (folder / name).write_text("".join(json.dumps({"text": text, "<b>": 1}) + "\n" for text in records))
    options = DataOptions(near_duplicates=None)
    prepare([folder / name], tokenizer_dir, folder / "<i>data", options)
    return folder / "<i>data"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_counts_and_examples_of_each_rule(prepared: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["data", "show", str(prepared), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    page = Tags()
    page.feed((tmp_path / "page.html").read_text())
    for expected in ("read43", "kept40", "exact duplicates1", "too short1", "repeated lines1"):
        assert expected in page.text.replace(",", ""), expected
    assert re.search(r"Length in tokens\d+ to \d+40", page.text.replace(",", ""))
    for rule in ("exact duplicates", "repeated lines", "too short"):
        assert f"Left out, for example: {rule}" in page.text
    assert TITLE in page.text and HOSTILE in page.text


def test_texts_and_names_become_no_tags(prepared: Path) -> None:
    page = Tags()
    page.feed(card_page(prepared))
    assert not {"script", "img", "a", "i", "b", "link"} & page.seen
    assert page.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "style"}


@pytest.mark.parametrize("name", ["dropped.jsonl", "train.jsonl"])
def test_a_broken_line_is_named(prepared: Path, tmp_path: Path, name: str) -> None:
    for file in ("card.json", "train.jsonl", "dropped.jsonl"):
        (tmp_path / file).write_bytes((prepared / file).read_bytes())
    (tmp_path / name).write_text('{"text": "a"}\n{"te')
    with pytest.raises(Corrupt, match=rf"{name}:2: is not what was written"):
        card_page(tmp_path)


class TestInABrowser:
    pytestmark = IN_A_BROWSER

    def test_nothing_of_a_text_runs(self, prepared: Path, tmp_path: Path) -> None:
        (tmp_path / "page.html").write_text(card_page(prepared))
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "<title>&lt;i&gt;data</title>" in dom and "Left out" in dom
