"""From files to stores: what is counted, what moves between the sides, and what a kill leaves."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound
from train.data.options import DataOptions
from train.data.prepare import Source, prepare, read_card
from train.data.reading.read import read_examples
from train.data.store import open_store
from train.data.tokenize import Tokens

PROSE = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text(encoding="utf-8")
QUARTER = DataOptions(held_fraction=0.25, max_tokens=200)


def chat(n: int) -> dict:
    said = f"What comes after {n}, please?", f"After {n} comes {n + 1}."
    return {"messages": [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]}


def write(file: Path, records: list[dict]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def documents(out: Path, side: str) -> dict[str, dict]:
    return {line["sha256"]: line for line in map(json.loads, (out / f"{side}.jsonl").open())}


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_every_example_is_counted_once_in_the_card(tokenizer_dir: Path, tmp_path: Path) -> None:
    paragraph = PROSE[:1200]
    records = [
        *map(chat, range(20)),
        chat(3),
        {"text": paragraph},
        {"text": paragraph.replace(" the ", " a ", 1)},
    ]
    unlearnable = {
        "messages": [{"role": "user", "content": "why " * 300}, {"role": "assistant", "content": "So."}]
    }
    file = write(
        tmp_path / "a.jsonl", [*records, {"text": "tiny"}, {"text": "spam, spam\n" * 40}, unlearnable]
    )
    (tmp_path / "b.txt").write_text(PROSE[5000:9000] + "\n<|endoftext|>\n" + paragraph)
    card = prepare([file, tmp_path / "b.txt"], tokenizer_dir, tmp_path / "out", QUARTER)
    one, two = card.sources
    assert (one.read, one.exact_duplicates, one.near_duplicates) == (26, 1, 1)
    assert one.dropped == {"repeated_lines": 1, "too_short": 1, "no_target_within_max_tokens": 1}
    assert (two.read, two.kept, two.exact_duplicates) == (2, 1, 1)
    assert card.dropped == {
        "exact_duplicates": 2, "near_duplicates": 1, "no_target_within_max_tokens": 1, "repeated_lines": 1, "too_short": 1,
    }  # fmt: skip
    assert card.kept == 22 == card.train.documents + card.held.documents and card.held.documents > 0
    assert card.read == card.kept + sum(card.dropped.values())
    for side, part in (("train", card.train), ("held", card.held)):
        store = open_store(tmp_path / "out" / side, verify=True)
        listed = documents(tmp_path / "out", side).values()
        assert (len(store), store.card.tokens, store.card.targets) == (
            part.examples,
            part.tokens,
            part.targets,
        )
        assert store.card.sha256 == part.store_sha256
        assert len(listed) == part.documents and sum(line["tokens"] for line in listed) == part.tokens
    assert sum(source.tokens for source in card.sources) == card.train.tokens + card.held.tokens
    assert read_card(tmp_path / "out") == card
    assert not list(tmp_path.glob(".*")), "nothing is left beside the result"


def test_stores_hold_what_the_listed_documents_become(
    tokenizer_dir: Path, tokens: Tokens, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [*map(chat, range(30)), {"text": PROSE[:3000]}])
    prepare([file], tokenizer_dir, tmp_path / "out", QUARTER)
    for side in ("train", "held"):
        listed = list(read_examples(tmp_path / "out" / f"{side}.jsonl"))
        expected = [example for raw in listed for example in tokens.encode(raw, 200)]
        store = open_store(tmp_path / "out" / side)
        assert len(store) == len(expected)
        for one, two in zip(store, expected, strict=True):
            assert np.array_equal(one.ids, two.ids) and np.array_equal(one.mask, two.mask)
        assert {raw.sha256 for raw in listed} == set(documents(tmp_path / "out", side))


def test_the_split_stays_when_files_are_reordered_and_others_come(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    records = [chat(n) for n in range(200)]
    prepare([write(tmp_path / "a.jsonl", records)], tokenizer_dir, tmp_path / "one", QUARTER)
    random.Random(0).shuffle(records)
    more = [
        write(tmp_path / "more.jsonl", [chat(n) for n in range(150, 400)]),
        write(tmp_path / "b.jsonl", records),
    ]
    prepare(more, tokenizer_dir, tmp_path / "two", QUARTER)
    first = {side: set(documents(tmp_path / "one", side)) for side in ("train", "held")}
    second = {side: set(documents(tmp_path / "two", side)) for side in ("train", "held")}
    assert 25 < len(first["held"]) < 75
    assert first["held"] < second["held"] and first["train"] < second["train"]


def test_the_same_inputs_give_the_same_bytes(tokenizer_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.txt").write_text(PROSE)
        files = [write(tmp_path / name / "a.jsonl", [chat(n) for n in range(50)]), tmp_path / name / "b.txt"]
        prepare(files, tokenizer_dir, tmp_path / name / "out", QUARTER)
    assert tree(tmp_path / "one" / "out") == tree(tmp_path / "two" / "out")


def test_files_to_measure_with_are_not_trained_on_nor_is_what_is_like_them(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    measured = [{"text": PROSE[:2000]}, chat(1)]
    trained = [{"text": "Oh, " + PROSE[:2000]}, {"text": PROSE[9000:11000]}, *map(chat, range(10))]
    files = [write(tmp_path / "a.jsonl", trained)], [write(tmp_path / "m.jsonl", measured)]
    card = prepare(files[0], tokenizer_dir, tmp_path / "out", QUARTER, held=files[1])
    assert (card.held.documents, card.train.documents) == (2, 10)
    assert (card.sources[0].exact_duplicates, card.sources[0].near_duplicates) == (1, 1)
    assert card.sources[1].kept == 2


def test_few_documents_still_leave_one_to_measure_with(tokenizer_dir: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [chat(n) for n in range(3)])
    card = prepare([file], tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0.001))
    assert (card.train.documents, card.held.documents) == (2, 1)
    card = prepare([file], tokenizer_dir, tmp_path / "none", DataOptions(held_fraction=0))
    assert (card.train.documents, card.held.documents) == (3, 0)
    assert len(open_store(tmp_path / "none" / "held", verify=True)) == 0


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(8, 0.001, 4), (12, 0.001, 4), (20, 0.001, 5), (32, 0.001, 8), (60, 0.001, 8), (60, 0.6, None)],
)
def test_a_small_file_has_as_many_held_out_as_are_needed_to_measure(
    tokenizer_dir: Path, tmp_path: Path, count: int, fraction: float, held: int | None
) -> None:
    """By chance alone, 87% of files of 20 had fewer than four."""
    records = [chat(n) for n in range(count)]
    options = DataOptions(held_fraction=fraction, min_held=4)
    card = prepare([write(tmp_path / "a.jsonl", records)], tokenizer_dir, tmp_path / "one", options)
    assert card.train.documents + card.held.documents == count
    assert card.held.documents == held if held else 24 < card.held.documents < 48
    prepare([write(tmp_path / "b.jsonl", records[::-1])], tokenizer_dir, tmp_path / "two", options)
    assert documents(tmp_path / "one", "held").keys() == documents(tmp_path / "two", "held").keys()


def test_a_small_file_holds_out_as_many_documents_as_can_be_measured(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    """Every other prompt is beyond ``max_tokens``: 12 can be learnt from, whichever hashes are the smallest."""
    for file in range(6):
        records = [chat(100 * file + n) for n in range(24)]
        for record in records[::2]:
            record["messages"][0]["content"] += " and on" * 400
        options = DataOptions(held_fraction=0.1, min_held=4, max_tokens=256)
        made = write(tmp_path / f"{file}.jsonl", records)
        card = prepare([made], tokenizer_dir, tmp_path / f"out{file}", options)
        assert (card.train.documents, card.held.documents) == (8, 4)


@pytest.mark.parametrize("copies", [0, 30])
def test_a_file_too_small_to_measure_and_to_learn_from_is_refused_with_what_is_needed(
    tokenizer_dir: Path, tmp_path: Path, copies: int
) -> None:
    file = write(tmp_path / "a.jsonl", [*(chat(n) for n in range(5)), *(chat(1) for _ in range(copies))])
    said = rf"^5 of {5 + copies} documents are left \({'30 exact duplicates' if copies else 'none dropped'}\)"
    with pytest.raises(InvalidInput, match=said + ".*4 are needed there and as many to learn from"):
        prepare([file], tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0.1, min_held=4))


def test_the_shipped_chats_are_enough_for_a_job(tokenizer_dir: Path, tmp_path: Path) -> None:
    file = Path(str(resources.files("train") / "examples" / "chat.jsonl"))
    options = DataOptions(held_fraction=0.1, min_held=4)
    card = prepare([file], tokenizer_dir, tmp_path / "out", options)
    assert (card.train.documents, card.held.documents) == (8, 4)


def test_a_folder_is_its_files_and_an_upload_has_its_owners_name(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "deep" / "b.md").write_text(PROSE[:3000])
    (tmp_path / "texts" / "photo.png").write_bytes(b"\x89PNG")
    write(tmp_path / "texts" / "a.jsonl", [chat(n) for n in range(3)])
    upload = write(tmp_path / "file-1", [chat(n) for n in range(3, 6)])
    card = prepare([tmp_path / "texts", Source(upload, "mine.jsonl")], tokenizer_dir, tmp_path / "out")
    assert [source.name for source in card.sources] == ["a.jsonl", "deep/b.md", "mine.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no files to read"):
        prepare([tmp_path / "empty"], tokenizer_dir, tmp_path / "other")
    with pytest.raises(NotFound, match="there is no file"):
        prepare([tmp_path / "missing.txt"], tokenizer_dir, tmp_path / "other")


def test_a_broken_file_ends_it_and_nothing_is_left(tokenizer_dir: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [chat(n) for n in range(10)])
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(chat(1)).encode() + b"\n\xff\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match=r"^bad\.jsonl:2: .*not UTF-8"):
        prepare([good, tmp_path / "bad.jsonl"], tokenizer_dir, tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"^9 of 10 examples are left.*1 held out.*At least 100"):
        prepare([good], tokenizer_dir, tmp_path / "out", QUARTER.model_copy(update={"min_examples": 100}))
    assert sorted(tmp_path.iterdir()) == before


def test_done_work_is_not_done_again_and_other_work_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [chat(n) for n in range(10)])
    card = prepare([file], tokenizer_dir, tmp_path / "out", QUARTER)
    before = (tmp_path / "out" / "card.json").stat().st_mtime_ns
    assert prepare([file], tokenizer_dir, tmp_path / "out", QUARTER) == card
    assert (tmp_path / "out" / "card.json").stat().st_mtime_ns == before
    with pytest.raises(Conflict, match="other files or options"):
        prepare([file], tokenizer_dir, tmp_path / "out", DataOptions(held_fraction=0.5))
    (tmp_path / "out" / "card.json").write_text("{")
    with pytest.raises(Corrupt, match=r"card\.json"):
        prepare([file], tokenizer_dir, tmp_path / "out", QUARTER)


KILLED_AT = """
import random, signal, sys
from pathlib import Path
from tests.train.data.test_prepare import QUARTER, prepare
at, *files, tokenizer, out = sys.argv[1:]
def look(step, done):
    if step == at:  # the kernel kills it after so much more of its own work, however busy the machine is
        signal.setitimer(signal.ITIMER_PROF, random.Random(at).random() / 50)
prepare(list(map(Path, files)), Path(tokenizer), Path(out), QUARTER, look)
"""


@pytest.fixture(scope="module")
def undisturbed(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(many(folder), tokenizer_dir, folder / "out", QUARTER)
    return folder / "out"


def many(folder: Path) -> list[Path]:
    (folder / "b.txt").write_text(PROSE)
    return [write(folder / "a.jsonl", [chat(n) for n in range(150)]), folder / "b.txt"]


@pytest.mark.parametrize("at", ["reading b.txt", "looking for duplicates", "tokenizing b.txt"])
def test_a_killed_run_leaves_nothing_half_and_the_next_goes_on_to_the_same_bytes(
    tokenizer_dir: Path, tmp_path: Path, undisturbed: Path, at: str
) -> None:
    files = many(tmp_path)
    arguments = [
        sys.executable,
        "-c",
        KILLED_AT,
        at,
        *map(str, files),
        str(tokenizer_dir),
        str(tmp_path / "out"),
    ]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGPROF
    assert not (tmp_path / "out").exists()
    whole = (file for file in tmp_path.glob(".out.preparing/*/counts.json") if file.parent.name != "partial")
    done = {file: file.stat().st_mtime_ns for file in whole}
    assert done, "the first file was finished"

    def look(step: str, _: float | None) -> None:
        if step == "looking for duplicates":
            assert all(file.stat().st_mtime_ns == when for file, when in done.items())

    prepare(files, tokenizer_dir, tmp_path / "out", QUARTER, look)
    assert tree(tmp_path / "out") == tree(undisturbed)
    assert not list(tmp_path.glob(".*"))
