"""Preparation as datatrove's pipelines: the bytes of ``prepare``, however many tasks there are and whichever are run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import InvalidInput
from train.data.collecting import shards
from train.data.many_machines import Collect, Finish, Preparation
from train.data.prepare import prepare


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, count in (("a", 200), ("b", 30), ("c", 5)):
        lines = [{"text": f"Text {n % 90} of {name} says {n % 70} and goes on."} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prices.jsonl").write_text('{"price": 3}\n' * 900)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test's files are large."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2500)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def recipe(corpus: Path) -> Path:
    file = corpus.parent / "recipe.yaml"
    mixture = "{one: {train: corpus/a.jsonl}, rest: {train: [corpus/b.jsonl, corpus/c.jsonl]}}"
    file.write_text(f"base: tiny\nsequence_tokens: 64\ndata:\n  mixture: {mixture}\n  test_fraction: 0.1\n")
    return file


def test_tasks_that_are_run_again_or_late_change_nothing(
    corpus: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    whole = prepare([corpus], tokenizer_dir, tmp_path / "whole")
    asked = Preparation([corpus], tokenizer_dir, tmp_path / "out")
    work = tmp_path / ".out.preparing"
    for rank in (3, 0, 0, 2):
        Collect(asked)(None, rank, 4)
    plan, made = (work / "plan.json").stat().st_mtime_ns, {each for each in work.iterdir() if each.is_dir()}
    Collect(asked)(None, 1, 4)
    assert {each for each in work.iterdir() if each.is_dir()} > made
    assert (work / "plan.json").stat().st_mtime_ns == plan, "the files are looked at once"
    Finish(asked)(None, 0, 1)
    assert files(tmp_path / "out") == files(tmp_path / "whole") and whole.skipped["not examples"].files == 1
    Collect(asked)(None, 0, 4)
    assert not work.exists()


def test_a_file_that_was_changed_is_read_anew(corpus: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    asked = Preparation([corpus], tokenizer_dir, tmp_path / "out")
    Collect(asked)(None, 0, 1)
    with (corpus / "c.jsonl").open("a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(InvalidInput, match=r"^c\.jsonl:6: "):
        Collect(asked)(None, 0, 1)
    (corpus / "c.jsonl").write_text('{"text": "Something else, and long enough."}\n')
    Collect(asked)(None, 0, 1)
    Finish(asked)(None, 0, 1)
    prepare([corpus], tokenizer_dir, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_datatroves_executor_gives_the_same_bytes(corpus: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    """Slurm's and Ray's executors run the same steps; there is neither here."""
    from datatrove.executor import LocalPipelineExecutor

    asked = Preparation.of_recipe(recipe(corpus), tokenizer_dir, tmp_path / "out")
    first = LocalPipelineExecutor([Collect(asked)], tasks=3, workers=2, logging_dir=str(tmp_path / "first"))
    last = LocalPipelineExecutor([Finish(asked)], tasks=1, logging_dir=str(tmp_path / "last"), depends=first)
    last.run()
    whole = prepare(asked.sources, tokenizer_dir, tmp_path / "whole", asked.options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert list(whole.components) == ["one", "rest"] and whole.test and whole.test.documents
