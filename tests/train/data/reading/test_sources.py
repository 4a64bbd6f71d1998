"""One rule for folders, and what people are told of what was read, changed, left out and skipped."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from everlearn.errors import Conflict, InvalidInput
from tests.train.data.cleaning.test_duplicates import chat, say
from train.data.card import DataCard
from train.data.options import DataOptions
from train.data.prepare import prepare, read_card
from train.data.reading.sources import expand, list_sources
from train.data.train_tokenizer import train_tokenizer

KEEP_ALL = DataOptions(held_fraction=0)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder as people have them: a repository, notes of Obsidian's, odds and ends."""
    folder = tmp_path / "notes"
    (folder / "deep" / "dir.md").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for hidden in (".obsidian", "deep/.cache"):
        (folder / hidden).mkdir()
        (folder / hidden / "plugin.md").write_text("Never to be learnt, " * 5)
    (folder / ".git" / "notes.md").write_text("Never to be learnt, " * 5)
    (folder / ".draft.md").write_text("Never to be learnt, " * 5)
    (folder / "README.MD").write_text(f"A readme.  \n{say(30)}\n")
    (folder / "deep" / "a.md").write_text(f"Another.\n{say(30)}\n")
    (folder / "deep" / "dir.md" / "chats.JSONL").write_text(json.dumps(chat("Who?", "Me.")) + "\n")
    (folder / "deep" / "empty.md").write_text("")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "old.zip").write_bytes(b"PK\x03\x04")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "outside.md").write_text("Not of this folder, " * 5)
    (folder / "away.md").symlink_to(tmp_path / "outside.md")
    (folder / "gone.md").symlink_to(folder / "missing.md")
    (folder / "round").symlink_to(folder)
    (folder / "same.md").symlink_to(folder / "README.MD")
    os.mkfifo(folder / "pipe.md")
    return folder


def test_a_folder_is_read_without_what_is_hidden_empty_or_elsewhere(
    notes: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    card = prepare([notes], tokenizer_dir, tmp_path / "out", KEEP_ALL)
    assert [each.name for each in card.sources] == [
        "README.MD", "blank.txt", "same.md", "deep/a.md", "deep/dir.md/chats.JSONL",
    ]  # fmt: skip
    assert {reason: each.names for reason, each in card.skipped.items()} == {
        "empty": ["blank.txt", "deep/empty.md"],
        "hidden": [".draft.md", ".git/", ".obsidian/", "deep/.cache/"],
        "links": ["away.md", "round/"],
        "no files": ["gone.md", "pipe.md"],
        "of unknown kind": ["old.zip", "photo.png"],
    }
    learnt = (tmp_path / "out" / "train.jsonl").read_text()
    assert "Never to be" not in learnt and "Not of this" not in learnt and "A readme.  \\n" in learnt
    assert (card.kept, card.dropped) == (3, {"exact_duplicates": 1})
    assert any("old.zip" in line and line.startswith("data: skipped") for line in card.told())


def test_a_tokenizer_is_learnt_from_the_same_files(notes: Path, tmp_path: Path) -> None:
    named = [each.path for each in list_sources([notes]) if each.name != "blank.txt"]
    for name, sources in (("folder", [notes]), ("files", named)):
        train_tokenizer(sources, 280, tmp_path / name)
    made = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("folder", "files")]
    assert made[0] == made[1]


def test_a_bad_file_of_a_folder_is_named_by_its_way(notes: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    (notes / "deep" / "dir.md" / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    with pytest.raises(InvalidInput, match=r"^deep/dir\.md/bad\.jsonl:2: is not JSON"):
        prepare([notes], tokenizer_dir, tmp_path / "out", KEEP_ALL)
    with pytest.raises(InvalidInput, match=r"^deep/dir\.md/bad\.jsonl:2: is not JSON"):
        train_tokenizer([notes], 280, tmp_path / "tokenizer")


OTHERS = {
    "package.json": '{\n  "name": "web",\n  "version": "1.0.0",\n  "files": ["dist"],\n  "scripts": {"test": "x"}\n}\n',
    "tsconfig.json": '{\n  // how it is built\n  "compilerOptions": {"strict": true}\n}\n',
    "settings.json": '// settings\n{"a": 1}\n',
    "one.json": '{"a": 1}',
    "list.json": "[1, 2, 3]",
    "prices.csv": "city,price\nBern,3\n",
    "log.jsonl": '{"at": 3, "level": "info"}\n',
}


def test_found_files_that_begin_with_no_example_are_skipped_and_told(
    notes: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    for name, content in OTHERS.items():
        (notes / name).write_text(content)
    card = prepare([notes], tokenizer_dir, tmp_path / "out", KEEP_ALL)
    assert card.skipped["not examples"].names == sorted(OTHERS) and card.kept == 3
    assert any(line.startswith("data: skipped, not examples: list.json") for line in card.told())
    train_tokenizer([notes], 280, tmp_path / "tokenizer")


@pytest.mark.parametrize("name", OTHERS)
def test_such_files_that_are_named_are_refused(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(OTHERS[name])
    with pytest.raises(InvalidInput, match=rf"^{name}:"):
        prepare([tmp_path / name], tokenizer_dir, tmp_path / "out", KEEP_ALL)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"text": "An example."},\n {"txet": 1}]'),
        ("b.json", '{"messages": [{"role": }]}'),
        ("c.csv", "prompt,completion\na\n"),
        ("d.jsonl", '{"messages": []}\n'),
    ],
)
def test_found_files_that_begin_as_examples_and_are_broken_are_refused(
    name: str, content: str, notes: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    (notes / name).write_text(content)
    with pytest.raises(InvalidInput, match=rf"^{name}:"):
        prepare([notes], tokenizer_dir, tmp_path / "out", KEEP_ALL)


def test_a_folder_without_any_example_says_so(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "package.json").write_text(OTHERS["package.json"])
    with pytest.raises(InvalidInput, match=r"^no file holds examples.*package\.json.*messages"):
        prepare([tmp_path / "in"], tokenizer_dir, tmp_path / "out", KEEP_ALL)


def test_a_hidden_folder_that_is_named_is_read_and_one_with_nothing_says_what_it_skipped(notes: Path) -> None:
    assert list_sources([notes / ".obsidian"])[0].name == "plugin.md"
    (notes / "only").mkdir()
    (notes / "only" / "a.zip").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match=r"only has no files to read \(1 of unknown kind\).*\.csv"):
        expand([notes / "only"])


def test_a_repositorys_markdown_is_read_without_its_history(tokenizer_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "docs").mkdir(parents=True)
    for name in ("README.md", "docs/guide.md", "docs/faq.md"):
        (repository / name).write_text(f"# {name}\n\n{say(40)}\n\n```py\nif x:\n    y()  \n```\n")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "One."], ["branch", "other.md"]):
        subprocess.run([*git, *command], check=True)
    assert any(path.is_file() for path in (repository / ".git").rglob("*.md"))
    card = prepare([repository], tokenizer_dir, tmp_path / "out", KEEP_ALL)
    assert [each.name for each in card.sources] == ["README.md", "docs/faq.md", "docs/guide.md"]
    assert card.skipped["hidden"].names == [".git/"] and card.kept == 3 and not card.changed


def told(records: list[dict], tokenizer_dir: Path, tmp_path: Path) -> tuple[DataCard, list[str]]:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines: list[str] = []
    card = prepare(
        [tmp_path / "a.jsonl"], tokenizer_dir, tmp_path / "out", KEEP_ALL, lambda step, _: lines.append(step)
    )
    return card, [line for line in lines if line.startswith(("data: ", "warning: "))]


def test_changed_ignored_and_left_out_examples_are_told_and_more_than_a_tenth_is_a_warning(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    records = [chat(say(5), f"one\x0c{say(3)}\r\nthree", id=n) for n in range(17)]
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    card, lines = told([*records, records[0]], tokenizer_dir, tmp_path / "few")
    assert lines == [
        "data: 18 examples read (18 chat); 17 to train on, 0 held out",
        "data: left out: exact duplicates 1",
        "data: changed: line ends (36 characters of 18 examples)",
        "data: not used of the examples: id 18",
    ]
    assert card.changed["line_ends"].model_dump() == {"examples": 18, "characters": 36}
    _, lines = told([*records, *records[:2], {"text": "tiny"}], tokenizer_dir, tmp_path / "many")
    assert lines[-1] == (
        "warning: 15% of the examples (3 of 20) are left out: exact duplicates 2, too short 1"
    )


def test_an_earlier_versions_card_is_refused_and_says_what_to_do(tokenizer_dir: Path, tmp_path: Path) -> None:
    told([chat("Who?", "Me.")], tokenizer_dir, tmp_path)
    card = tmp_path / "out" / "card.json"
    card.write_text(card.read_text().replace('"schema_version": 2,', '"schema_version": 1,'))
    with pytest.raises(Conflict, match=r"earlier version.*remove it"):
        read_card(tmp_path / "out")
