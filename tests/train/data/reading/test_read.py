"""Files to examples: every layout, and every way a stranger's file may be broken."""

import gzip
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import EverlearnError, InvalidInput, NotFound
from tests.train.data.reading import bombs
from train.data.reading import unpacked
from train.data.reading.read import Chat, Limits, Text, read_examples

CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_json_lines_hold_texts_conversations_and_prompts_with_completions(tmp_path: Path) -> None:
    pair = {"prompt": "Who?", "completion": "Me."}
    file = write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + lines({"text": "One."}) + b"\n" + lines(CHAT, pair))
    text, chat, completion = read_examples(file)
    assert text == Text("One.") and text.source == "a.jsonl:1"
    assert isinstance(chat, Chat) and chat.messages == CHAT["messages"] and chat.source == "a.jsonl:3"
    assert completion == chat and completion.sha256 == chat.sha256


def test_a_text_file_ends_documents_at_separators_and_long_ones_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n} " + "word " * 20 for n in range(10)]
    content = "first\r\ndocument\n\nstill first\n<|endoftext|>\n\n\nsecond\n<|endoftext|>\n" + "\n\n".join(
        paragraphs
    )
    found = list(
        read_examples(write(tmp_path, "a.md", content.encode()), limits=Limits(max_document_bytes=300))
    )
    assert [text.text for text in found[:2]] == ["first\ndocument\n\nstill first", "second"]
    assert [text.source for text in found[:3]] == ["a.md:1", "a.md:8", "a.md:10"]
    assert "\n\n".join(text.text for text in found[2:]) == "\n\n".join(paragraphs)
    assert all(len(text.text) < 500 for text in found) and len(found) > 4


def test_a_paragraph_without_end_is_cut_between_its_lines(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", b"a line of a log\n" * 10_000)
    found = list(read_examples(file, limits=Limits(max_document_bytes=1000)))
    assert len(found) > 15 and sum(text.text.count("log") for text in found) == 10_000


def test_parquet_and_gzip_read_as_what_they_hold(tmp_path: Path) -> None:
    table = pyarrow.table({"messages": [CHAT["messages"]] * 3, "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    plain = write(tmp_path, "a.jsonl", lines(*[CHAT] * 3))
    packed = write(tmp_path, "b.jsonl.gz", gzip.compress(plain.read_bytes()))
    expected = list(read_examples(plain))
    assert list(read_examples(tmp_path / "a.parquet")) == expected == list(read_examples(packed))
    assert [example.source for example in read_examples(tmp_path / "a.parquet")][-1] == "a.parquet:3"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_upload_kept_under_an_id_is_read_by_what_it_holds_and_named_as_its_owner_knows_it(
    tmp_path: Path, suffix: str
) -> None:
    content = lines(CHAT, {"text": 3})
    file = write(tmp_path, "file-3f", gzip.compress(content) if suffix else content)
    assert next(read_examples(file)) == Chat(CHAT["messages"])
    with pytest.raises(InvalidInput, match=r"^mine\.jsonl(\.gz)?:2: "):
        list(read_examples(file, name=f"mine.jsonl{suffix}"))


def pickled() -> bytes:
    return pickle.dumps(CHAT)


def message(**fields: object) -> dict:
    return {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me.", **fields}]
    }


FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"f\.jsonl: is empty.*at least one"),
    "only blank lines": (b"\n \n", r"f\.jsonl: is empty"),
    "broken UTF-8": (lines(CHAT) + b'{"text": "\xff"}\n', r"f\.jsonl:2: byte 11 of the line, 0xff.*UTF-8"),
    "UTF-16": (json.dumps(CHAT).encode("utf-16"), r"f\.jsonl:1: is UTF-16 text.*UTF-8"),
    "a pickle": (pickled(), r"f\.jsonl:1: is a Python pickle, not JSON lines.*one JSON object a line"),
    "gzip without its suffix": (gzip.compress(lines(CHAT)), r"f\.jsonl:1: is gzipped"),
    "zero bytes": (b'{"text": "a\0b"}\n', r"f\.jsonl:1: has a zero byte"),
    "not JSON": (lines(CHAT) + b"{'text': 1}\n", r"f\.jsonl:2: is not JSON.*column 2.*\{'text': 1\}.*Right would"),
    "one JSON list": (b"[\n" + lines(CHAT), r"f\.jsonl:1: is not JSON"),
    "nested beyond measure": (b"[" * 200_000 + b"\n", r"f\.jsonl:1: is nested too deeply"),
    "a huge number": (b'{"text": ' + b"9" * 5000 + b"}\n", r"f\.jsonl:1: is not JSON"),
    "not an object": (lines(["a"]), r"f\.jsonl:1: is a list, not an object"),
    "other keys": (lines({"mesages": []}), r'has "mesages".*"messages", "text".*did you mean \'messages\''),
    "two kinds": (lines({**CHAT, "text": "a"}), r'f\.jsonl:1: has both "messages" and "text"'),
    "text of a wrong type": (lines({"text": 3}), r'f\.jsonl:1: "text" is a number, not text'),
    "half a character": (b'{"text": "a\\ud83d"}\n', r"f\.jsonl:1: .*half a character, \\ud83d, at 1"),
    "a prompt alone": (lines({"prompt": "a"}), r'f\.jsonl:1: has a "prompt" and no "completion"'),
    "no messages": (lines({"messages": []}), r'f\.jsonl:1: "messages" is not a list of messages'),
    "an unknown role": (lines(message(role="robot")), r'messages\[1\]: has the role "robot".*system, developer, user'),
    "no answer": (lines({"messages": CHAT["messages"][:1]}), r"f\.jsonl:1: has no answer to learn from"),
    "no answer that counts": (lines(message(weight=0)), r"has no answer to learn from: every weight is 0"),
    "an odd weight": (lines(message(weight=0.5)), r"messages\[1\]: has the weight 0\.5"),
    "an empty answer": (lines(message(content=" ")), r"messages\[1\]: is an empty answer"),
    "no content": (lines(message(content=None)), r'messages\[1\]: "content" is null, not text'),
    "a question last": (lines({"messages": CHAT["messages"][::-1]}), r'ends with a message of the role "user"'),
    "a picture": (lines(message(content=[{"type": "image_url"}])), r"has a part that is not text"),
    "calls that are none": (lines(message(tool_calls="f")), r'"tool_calls" is not a list of calls'),
    "tools that are none": (lines({**CHAT, "tools": [{}]}), r'"tools" is not a list of functions'),
    "messages without end": (lines({"messages": CHAT["messages"] * 600}), r"has 1200 messages"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_ends_in_one_error_that_says_where_what_and_what_would_be_right(
    tmp_path: Path, fault: str
) -> None:
    content, expected = FAULTS[fault]
    with pytest.raises(InvalidInput, match=expected):
        list(read_examples(write(tmp_path, "f.jsonl", content)))


def test_archives_in_disguise_broken_gzip_and_broken_parquet_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.jsonl", "w") as archive:
        archive.writestr("a", "b" * 100)
    with pytest.raises(InvalidInput, match=r"f\.jsonl:1: is a ZIP archive"):
        list(read_examples(tmp_path / "f.jsonl"))
    half = write(tmp_path, "h.jsonl.gz", gzip.compress(lines(CHAT) * 1000)[:-20])
    with pytest.raises(InvalidInput, match=r"h\.jsonl\.gz:[0-9]+: is not whole gzip"):
        list(read_examples(half))
    with pytest.raises(InvalidInput, match=r"n\.jsonl\.gz: is not whole gzip"):
        list(read_examples(write(tmp_path, "n.jsonl.gz", b"no gzip at all")))
    for content in (b"PAR1 and nothing else PAR1", b"no parquet"):
        with pytest.raises(InvalidInput, match=r"p\.parquet: (is not whole|does not begin)"):
            list(read_examples(write(tmp_path, "p.parquet", content)))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(InvalidInput, match=r'c\.parquet: has the columns "body"'):
        list(read_examples(tmp_path / "c.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "d.parquet")
    with pytest.raises(InvalidInput, match=r'd\.parquet:2: "text" is null'):
        list(read_examples(tmp_path / "d.parquet"))
    with pytest.raises(NotFound, match="there is no file"):
        list(read_examples(tmp_path / "missing.jsonl"))


def test_kind_and_the_least_number_of_examples_are_kept_to(tmp_path: Path) -> None:
    file = write(tmp_path, "f.jsonl", lines(CHAT, {"text": "One."}))
    with pytest.raises(InvalidInput, match=r"f\.jsonl:2: is a text, not a conversation"):
        list(read_examples(file, kind="chat"))
    with pytest.raises(InvalidInput, match=r"f\.jsonl:1: is a conversation, not a text"):
        list(read_examples(file, kind="text"))
    with pytest.raises(InvalidInput, match=r"f\.jsonl: holds 2 examples.*At least 10"):
        list(read_examples(file, limits=Limits(min_examples=10)))


READ_ONE = """
import resource, sys
from pathlib import Path
from everlearn.errors import InvalidInput
from train.data.reading.read import read_examples

def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak_kib()
if limit_bytes := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
try:
    for _ in read_examples(Path(sys.argv[1])): pass
except (InvalidInput, MemoryError) as error:
    print(peak_kib() - before, error if isinstance(error, InvalidInput) else f"{sys.argv[1].split('/')[-1]} is out of memory")
"""


def read_in_a_process(file: Path, limit_bytes: int = 0) -> tuple[int, str]:
    """How much the process grew, at its most, and the error that the file ends in."""
    command = [sys.executable, "-c", READ_ONE, file, str(limit_bytes)]
    read = subprocess.run(command, capture_output=True, text=True, check=True)
    grown_kib, _, said = read.stdout.partition(" ")
    return int(grown_kib), said


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "one value for 256 rows.parquet": (bombs.one_value_for_256_rows, "^{0}:1: the row takes 62914576 bytes"),
    "messages.parquet": (lambda: bombs.parquet(messages=bombs.messages(200_000, "y" * 100_000)), "^{0}:1: the row takes 20"),
    "lists of one length.parquet": (lambda: bombs.one_value_in_lists_of_one_length("fixed"), "^{0}:1: the row takes 20000126 bytes"),
    "views of lists.parquet": (lambda: bombs.one_value_in_lists_of_one_length("view"), "^{0}:1: the row takes 20000126 bytes"),
    "values of one length.parquet": (bombs.values_of_one_length, '^{0}: the column "text" has values of 20000000 bytes each'),
    "nulls.parquet": (lambda: bombs.parquet(messages=bombs.lists(pyarrow.nulls(2**23, pyarrow.string()))), "^{0}:1: the row takes 1"),
    "more nulls.parquet": (lambda: bombs.parquet(messages=bombs.lists(pyarrow.nulls(2**26, pyarrow.string()))), "^{0}: row group 0 has .* values"),
    "rows.parquet": (lambda: bombs.parquet(text=bombs.repeated("x" * 100_000, 10_000)), "^{0}:[0-9]+: the file unpacks to more than 268435456"),
    "a lying page.parquet": (bombs.lying_page, "^{0}"),
    "lines.jsonl.gz": (lambda: bombs.gzipped_lines(b'{"text": "' + b"a" * 200_000 + b'"}\n', 2000), "^{0}:[0-9]+: the file unpacks to more than"),
    "one line.txt.gz": (lambda: bombs.gzipped_lines(b"a", 300_000_000), "^{0}:1: the line is longer"),
    "a name.jsonl.gz": (lambda: bombs.gzip_with_a_long_name(100_000), "^{0}: is not whole gzip"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_stands_for_far_more_than_it_holds_is_refused_in_little_memory(
    tmp_path: Path, name: str
) -> None:
    made, said = BOMBS[name]
    grown_kib, error = read_in_a_process(write(tmp_path, name, made()), limit_bytes=2**30)
    assert re.search(said.format(re.escape(name)), error), error
    assert grown_kib < 800 * 1024


def test_rows_that_share_their_texts_are_read_as_they_are(tmp_path: Path) -> None:
    """Dictionaries, nulls, empty lists and slices of each, against the same rows as JSON lines."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": None}}]
    rows: list[dict[str, Any]] = [
        {"messages": CHAT["messages"][:1] * (n % 5) + CHAT["messages"], "tools": tools if n % 3 else None}
        for n in range(700)
    ]
    table = pyarrow.Table.from_pylist(rows)
    for page_bytes in (2**20, 300):  # with dictionaries, and where the writer gave them up
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=page_bytes)
        found = list(read_examples(tmp_path / "a.parquet", limits=Limits(max_row_bytes=2000)))
        assert [example.messages for example in found if isinstance(example, Chat)] == [
            row["messages"] for row in rows
        ]


def test_short_conversations_that_share_long_tools_are_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "FREE_BYTES", 2**20)
    random = Random(0)

    def say(words: int) -> str:
        return " ".join(f"{random.getrandbits(28):07x}" for _ in range(words))

    tools = [{"type": "function", "function": {"name": f"f{n}", "description": say(20)}} for n in range(150)]
    rows = [
        {"tools": tools, "messages": [{"role": "user", "content": say(8)}, {"role": "assistant", "content": say(6)}]}
        for _ in range(600)
    ]  # fmt: skip
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="zstd")
    assert len(json.dumps(rows)) > 120 * file.stat().st_size
    assert len(list(read_examples(file))) == 600


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_damages_a_parquet_file_ends_in_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(bombs.parquet(messages=pyarrow.array([CHAT["messages"]] * 30), id=list(range(30))))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = write(
        tmp_path_factory.getbasetemp(),
        "any.parquet",
        bytes(content[: data.draw(st.integers(0, len(content)))]),
    )
    try:
        assert all(example.sha256 for example in read_examples(file))
    except EverlearnError as error:
        assert isinstance(error, InvalidInput) and error.message.startswith("any.parquet")
    except MemoryError:
        pass  # a page that lies: the process that reads users' files has a limit, and tells of it


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.txt"])
def test_a_line_of_50_megabytes_is_refused_in_a_few_megabytes_of_memory(tmp_path: Path, name: str) -> None:
    first = b"Some prose.\n" if name == "f.txt" else lines({"text": "short"})
    content = first + b'{"text": "' + b"a" * 50_000_000 + b'"}\n'
    file = write(tmp_path, name, gzip.compress(content, 1) if name.endswith("gz") else content)
    del content
    grown_kib, said = read_in_a_process(file)
    assert said.startswith(f"{name}:2: the line is longer than 1048576 bytes. ")
    assert grown_kib < 12 * 1024


def test_a_hundred_thousand_lines_stream(tmp_path: Path) -> None:
    with (tmp_path / "f.jsonl").open("wb") as file:
        for _ in range(100):
            file.write(lines(CHAT) * 1000)
        file.write(b"{}\n")
    examples = read_examples(tmp_path / "f.jsonl")
    assert isinstance(examples, Iterator) and len(list(islice(examples, 10))) == 10
    grown_kib, said = read_in_a_process(tmp_path / "f.jsonl")
    assert said.startswith("f.jsonl:100001: has no keys")
    assert grown_kib < 4 * 1024


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["messages", "text", "role", "content", "prompt", "tools", "weight"]), inner),
).map(lambda record: json.dumps(record).encode()))  # fmt: skip
def test_any_bytes_are_examples_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(content)
    try:
        for example in read_examples(file):
            assert example.sha256 and example.source.startswith("any.jsonl:")
    except EverlearnError as error:
        assert isinstance(error, InvalidInput) and error.message.startswith("any.jsonl")


def test_the_hash_is_of_the_content_in_normal_form() -> None:
    assert Text("caf\u00e9").sha256 == Text("cafe\u0301", source="elsewhere").sha256 != Text("cafe").sha256
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    other = [{"content": "a", "role": "user"}, {"content": "b", "role": "assistant"}]
    assert Chat(said).sha256 == Chat(other).sha256 != Chat(said, tools=[{"function": {"name": "f"}}]).sha256
