"""Large files in parts: what the parts say together is what the whole says, whoever reads them and whatever was done before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.errors import InvalidInput
from train.data.collecting import shards
from train.data.collecting.shards import parts_of
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.lines import Limits
from train.data.reading.read import read_examples
from train.data.reading.sources import Source

LINES = st.lists(
    st.sampled_from(["", "a", "word " * 9, "é字😀 ", "<|endoftext|>", "x" * 70, "  "]), max_size=60
)
BREAKS = st.sampled_from(["\n", "\r\n"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test's files are large."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 64)


def said(file: Path, limits: Limits) -> tuple[list[tuple[str, str]], list[tuple[str, str]], int]:
    """Where each example was read and what it says: of the whole, of its parts, and how many parts."""
    whole = [(each.source, str(each.record)) for each in read_examples(file, limits=limits)]
    parts = parts_of(Source(file, file.name), DataOptions(), limits)
    assert not parts or (parts[0].begin == 0 and parts[-1].end == file.stat().st_size)
    read = [each for part in parts for each in read_examples(file, limits=limits, part=part)]
    return whole, [(each.source, str(each.record)) for each in read], len(parts)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, BREAKS, st.booleans(), st.booleans())
def test_the_parts_of_a_text_have_the_documents_of_the_whole(
    small: None, tmp_path: Path, lines: list[str], newline: str, ends: bool, marked: bool
) -> None:
    file = tmp_path / "a.txt"
    content = newline.join(lines) + newline * ends
    file.write_bytes(b"\xef\xbb\xbf" * marked + content.encode())
    whole, read, parts = said(file, Limits(max_document_bytes=40, min_examples=0))
    assert parts == 0 or read == whole


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, BREAKS, st.booleans(), st.booleans())
def test_the_parts_of_json_lines_have_the_records_of_the_whole(
    small: None, tmp_path: Path, lines: list[str], newline: str, ends: bool, marked: bool
) -> None:
    file = tmp_path / "a.jsonl"
    records = [json.dumps({"text": line}, ensure_ascii=False) if line.strip() else line for line in lines]
    content = newline.join(records) + newline * ends
    file.write_bytes(b"\xef\xbb\xbf" * marked + content.encode())
    whole, read, parts = said(file, Limits(min_examples=0))
    assert parts == 0 or read == whole
    assert parts >= file.stat().st_size // 300 or file.stat().st_size < 400


def corpus(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        {"text": f"Text {n % 70}: it says {n % 90} and goes on." if n % 9 else "tiny", f"key{n % 7}": n}
        for n in range(300)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paragraphs = [
        f"Paragraph {n} of a manual, and it has {n * n} words.\n\n" * (n % 4 + 1) for n in range(80)
    ]
    (folder / "b.md").write_text("<|endoftext|>\n".join(paragraphs))
    (folder / "c.jsonl").write_text('{"price": 3}\n' * 50)
    (folder / "d.csv").write_text('text\n"one\ntwo and more words than sixteen"\n')
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_give_the_bytes_of_whole_files(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    folder = corpus(tmp_path / "corpus")
    whole = prepare([folder], tokenizer_dir, tmp_path / "whole", processes=1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    parts = [
        len(parts_of(Source(file, file.name), DataOptions(), Limits())) for file in sorted(folder.iterdir())
    ]
    assert parts[0] > 3 and parts[1] > 1 and not any(parts[2:])
    assert prepare([folder], tokenizer_dir, tmp_path / "parts", processes=processes) == whole
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert whole.sources[0].dropped and whole.sources[0].ignored and whole.skipped["not examples"]


def test_parts_that_were_read_before_a_kill_are_not_read_again(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = corpus(tmp_path / "corpus")
    whole = prepare([folder], tokenizer_dir, tmp_path / "whole", processes=1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    from train.data.collecting import collect

    write, written = collect._write_documents, list[Path]()

    def killed(directory: Path, *rest: object) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(directory)
        write(directory, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, "_write_documents", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare([folder], tokenizer_dir, tmp_path / "out", processes=1)
    first = {each.name for each in written}
    again: list[Path] = []
    monkeypatch.setattr(collect, "_write_documents", lambda at, *rest: (again.append(at), write(at, *rest)))
    assert prepare([folder], tokenizer_dir, tmp_path / "out", processes=1) == whole
    assert len(first) == 4 and again and not first & {each.name for each in again}
    assert files(tmp_path / "whole") == files(tmp_path / "out")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_is_told_by_its_line_in_the_file(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    folder = corpus(tmp_path / "corpus")
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[222] = '{"txt": "x"}'
    (folder / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidInput, match=r"^a\.jsonl:223: "):
        prepare([folder], tokenizer_dir, tmp_path / "out", processes=processes)
    (tmp_path / "blank.jsonl").write_text("\n" * 9000)
    with pytest.raises(InvalidInput, match=r"^blank\.jsonl: is empty"):
        prepare([tmp_path / "blank.jsonl"], tokenizer_dir, tmp_path / "out", processes=processes)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_more_unused_keys_than_are_named_are_counted_as_in_the_whole(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"It says {n}, {n} times.", f"k{n % 130}": n}) + "\n" for n in range(300))
    )
    whole = prepare([file], tokenizer_dir, tmp_path / "whole")
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    assert prepare([file], tokenizer_dir, tmp_path / "parts") == whole and "others" in whole.ignored
