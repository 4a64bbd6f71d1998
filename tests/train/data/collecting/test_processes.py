"""Files read by several processes: the same bytes, the same errors, and what was read stays read."""

import json
from pathlib import Path

import pytest

from everlearn.errors import InvalidInput
from train.data.collecting.collect_child import Asked, collect_each
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.sources import list_sources


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        lines = [
            f"Text {n % 50} of file {file % 3}: it says {n * file} and goes on with words."
            for n in range(40 * file + 5)
        ]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_any_number_of_processes_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    alone = prepare([corpus], tokenizer_dir, tmp_path / "one", DataOptions(), processes=1)
    shared = prepare([corpus], tokenizer_dir, tmp_path / "two", DataOptions(), processes=2)
    assert alone == shared and alone.kept > 100
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_was_read_before_a_kill_is_not_read_again(
    corpus: Path, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare([corpus], tokenizer_dir, tmp_path / "whole", DataOptions(), processes=1)
    with monkeypatch.context() as killed:
        killed.setattr("train.data.prepare._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([corpus], tokenizer_dir, tmp_path / "out", DataOptions(), processes=2)
    collected = [each for each in (tmp_path / ".out.preparing").iterdir() if each.is_dir()]
    before = {each.name: (each / "documents.jsonl").stat().st_mtime_ns for each in collected}
    assert len(before) == 4
    monkeypatch.setattr(
        "train.data.collecting.collect._write_documents", lambda *_: pytest.fail("read again")
    )
    assert prepare([corpus], tokenizer_dir, tmp_path / "out", DataOptions(), processes=1) == whole


def test_the_first_broken_file_is_told_whoever_reads_it(
    corpus: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    for name in ("1.jsonl", "3.jsonl"):
        (corpus / name).write_text((corpus / name).read_text() + '{"text": 1}\n')
    with pytest.raises(InvalidInput, match=r"^1\.jsonl:46: "):
        prepare([corpus], tokenizer_dir, tmp_path / "out", DataOptions(), processes=2)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_progress_is_told_by_size(corpus: Path, tmp_path: Path) -> None:
    told: list[float | None] = []
    sources = list_sources([corpus])
    work = tmp_path / "work"
    work.mkdir()
    asked = [Asked(source, "0" * 64) for source in sources]
    collect_each(asked, DataOptions(), work, None, 1, lambda _, done=None: told.append(done))
    assert told == sorted(told, key=float) and told[-1] == pytest.approx(0.6)  # type: ignore[arg-type]
