"""A batch's file is checked before its first request is sent, and told what is wrong with it, line by line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn.registry.tables import ApiKey
from everlearn.settings import ServeSettings
from serve.batches.lines import MAX_FLAWS, CheckedLine, check, read_lines

CHAT = "/v1/chat/completions"
SETTINGS = ServeSettings(max_body_bytes=4096, max_n=2)


def line(id: str = "a", url: str = CHAT, **body: Any) -> dict[str, Any]:
    given = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | body
    return {"custom_id": id, "method": "POST", "url": url, "body": given}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(*lines: Any) -> Path:
        path = tmp_path / "batch.jsonl"
        parts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
        path.write_bytes(b"\n".join(parts))
        return path

    return write


def flaws(path: Path, key: ApiKey | None = None) -> list[tuple[int, str, str | None]]:
    found = check(path, CHAT, key, SETTINGS)
    assert not isinstance(found, int)
    return [(flaw["line"], flaw["code"], flaw["param"]) for flaw in found]


def test_a_good_file_is_counted_and_becomes_patient_requests(written: Any) -> None:
    path = written(line("a"), b"", line("b", temperature=0), b"  ")
    assert check(path, CHAT, None, SETTINGS) == 2
    first, second = (one for one in read_lines(path, CHAT, None, SETTINGS) if isinstance(one, CheckedLine))
    assert (first.number, first.custom_id, second.number) == (1, "a", 3)
    assert json.loads(second.work.body) == line("b", temperature=0)["body"] | {"service_tier": "flex"}
    assert not second.work.stream


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(written: Any) -> None:
    assert (
        check(written(b"\xef\xbb\xbf" + json.dumps(line("a")).encode(), line("b")), CHAT, None, SETTINGS) == 2
    )


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        (b"{", "invalid_input", None),
        (b'{"custom_id": "\xff"}', "invalid_input", None),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line() | {"method": "GET"}, "invalid_input", "method"),
        (line() | {"extra": 1}, "invalid_input", "extra"),
        ({"method": "POST", "url": CHAT, "body": {}}, "invalid_input", "custom_id"),
        (line(temperatur=1), "invalid_input", "body.temperatur"),
        (line(messages=[]), "invalid_input", "body.messages"),
        (line(stream=True), "invalid_input", "body.stream"),
        (line(n=3), "invalid_input", "body.n"),
        (line(user="x" * 5000), "request_too_large", None),
        (line("fine"), "duplicate_custom_id", "custom_id"),
    ],
)
def test_a_flaw_is_told_with_its_line_and_its_field(
    written: Any, wrong: Any, code: str, param: str | None
) -> None:
    assert flaws(written(line("fine"), wrong, line("last"))) == [(2, code, param)]


def test_several_flaws_are_told_at_once_and_not_without_end(written: Any) -> None:
    found = flaws(written(*[b"nonsense"] * 1000))
    assert [number for number, _, _ in found] == list(range(1, MAX_FLAWS + 1))


def test_an_empty_file_is_none(written: Any) -> None:
    assert flaws(written(b"", b" ")) == [(1, "empty_file", None)]


def test_a_line_without_end_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.seek(300 * 1024**2)
        file.write(b"\n" + json.dumps(line("after")).encode())
    import tracemalloc

    tracemalloc.start()
    assert flaws(path) == [(1, "request_too_large", None)]
    assert tracemalloc.get_traced_memory()[1] < 1024**2
    tracemalloc.stop()


def test_a_key_asks_only_for_its_models(written: Any) -> None:
    key = ApiKey(id="k", name="k", models=["other"])
    assert flaws(written(line()), key) == [(1, "forbidden", "body.model")]


ODD = st.recursive(
    st.sampled_from([None, True, -1, 2**70, 1e308, "", "m", "POST", CHAT, "\ud800", "a\0b", [], {}]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*line(), *line()["body"], "role", "content", "stream", "n", "tools"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(ODD | ODD.map(lambda body: line() | {"body": body}) | st.binary(max_size=40), max_size=4)
)
def test_a_batch_file_may_say_anything(tmp_path: Path, lines: list[Any]) -> None:
    """Each line is a request or a flaw with a number and a reason."""
    content = [
        one if isinstance(one, bytes) else json.dumps(one).encode("utf-8", "surrogatepass") for one in lines
    ]
    (tmp_path / "batch.jsonl").write_bytes(b"\n".join(content))
    found = check(tmp_path / "batch.jsonl", CHAT, None, SETTINGS)
    assert isinstance(found, int) or all(flaw["line"] >= 1 and flaw["message"] for flaw in found)


@pytest.mark.parametrize("depth", [100, 1500, 100_000])
def test_a_line_nested_without_end_is_a_flaw(tmp_path: Path, depth: int) -> None:
    deep = json.dumps(line(tools="DEEP")).replace('"DEEP"', "[" * depth + "]" * depth)
    (tmp_path / "batch.jsonl").write_text(deep)
    generous = ServeSettings(max_body_bytes=10**7)
    found = check(tmp_path / "batch.jsonl", CHAT, None, generous)
    assert not isinstance(found, int) and found[0]["line"] == 1
