"""A server's answers become text to learn, whatever the server does, and no prompt is asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everlearn.errors import AuthError, Conflict, EverlearnError, InvalidInput, NotFound, Unavailable
from tests.support.scripted_server import Script, Server, said
from train.data.augmenting import answers
from train.data.augmenting.answers import Asking, answer_prompts
from train.data.reading.read import read_examples


def echo(body: dict[str, Any], _before: int) -> tuple[int, Any]:
    return said(f"{body['messages'][-1]['content']}! ({body['seed']})")


def write_prompts(file: Path, count: int) -> Path:
    file.write_text("".join(json.dumps({"prompt": f"question {at}"}) + "\n" for at in range(count)))
    return file


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_become_conversations_that_training_reads(
    serving: Callable[[Script], Server], tmp_path: Path
) -> None:
    server, prompts, out = serving(echo), tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie geht's?"}]
    records = [
        {"prompt": "one", "completion": "what is learnt elsewhere"},
        {"messages": [*asked, {"role": "assistant", "content": "an older answer"}]},
        {"prompt": "one"},
    ]
    prompts.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    found = answer_prompts(prompts, out, Asking(server.url, "m", key="secret", samples=2, temperature=1))
    assert (found.answers, found.asked, found.cut, found.refused) == (6, 6, 0, 0)
    made = Counter(json.dumps(line["messages"]) for line in lines_of(out))
    one = [{"role": "user", "content": "one"}]
    answered = [
        [*asked_of, {"role": "assistant", "content": f"{asked_of[-1]['content']}! ({sample})"}]
        for asked_of in (one, asked, one)
        for sample in (0, 1)
    ]
    assert made == Counter(map(json.dumps, answered))
    assert len(list(read_examples(out))) == 6
    assert set(server.keys) == {"Bearer secret"} and "secret" not in repr(Asking("u", "m", key="secret"))
    assert answer_prompts(prompts, out, Asking(server.url, "m", samples=2, temperature=1)).asked == 0
    assert not list(tmp_path.glob("*.lock"))


def test_a_busy_or_broken_server_is_asked_again(serving: Callable[[Script], Server], tmp_path: Path) -> None:
    faults = [(429, {"error": {"message": "slow"}}), (503, b"<html>"), (0, None)]

    def script(body: dict[str, Any], before: int) -> tuple[int, Any]:
        return faults[before] if before < len(faults) else echo(body, before)

    server = serving(script)
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 6), tmp_path / "out.jsonl"
    found = answer_prompts(prompts, out, Asking(server.url, "m", at_once=3))
    assert found.answers == 6 and set(server.asked.values()) == {4} and server.most_at_once <= 3


def test_replies_without_an_answer_are_left_out_and_counted(
    serving: Callable[[Script], Server], tmp_path: Path
) -> None:
    def script(body: dict[str, Any], before: int) -> tuple[int, Any]:
        return {
            "question 0": said("and then he", "length"),
            "question 1": said("  "),
            "question 2": (400, {"error": {"message": "the prompt has 9000 tokens"}}),
        }.get(body["messages"][-1]["content"]) or echo(body, before)

    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 5), tmp_path / "out.jsonl"
    found = answer_prompts(prompts, out, Asking(serving(script).url, "m"))
    assert (found.answers, found.cut, found.empty, found.refused) == (2, 1, 1, 1)
    assert found.why_refused == "400, the prompt has 9000 tokens"
    assert {line["messages"][0]["content"] for line in lines_of(out)} == {"question 3", "question 4"}


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        (lambda *_: (401, {"error": {"message": "no such key"}}), AuthError, "401, no such key"),
        (lambda *_: (404, {"error": {"message": "no model m"}}), NotFound, "404, no model m"),
        (lambda *_: (200, b"hello"), Unavailable, "does not answer as an OpenAI server does"),
        (lambda *_: (200, {"choices": []}), Unavailable, "does not answer as an OpenAI server does"),
        (lambda *_: (500, b"broken"), Unavailable, "3 tries: 500, broken. What came is kept"),
        (lambda *_: (0, None), Unavailable, "did not answer in 3 tries"),
    ],
)
def test_a_server_that_gives_nothing_ends_it_with_its_words(
    serving: Callable[[Script], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    kind: type[EverlearnError],
    words: str,
) -> None:
    monkeypatch.setattr(answers, "TRIES", 3)
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 2), tmp_path / "out.jsonl"
    with pytest.raises(kind, match=words):
        answer_prompts(prompts, out, Asking(serving(script).url, "m", key="very-secret"))
    assert out.read_text() == "" and not list(tmp_path.glob("*.lock"))


def test_a_url_without_its_path_is_explained(serving: Callable[[Script], Server], tmp_path: Path) -> None:
    url = serving(echo).url.removesuffix("/v1")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(NotFound, match="mostly ends in /v1"):
        answer_prompts(prompts, tmp_path / "out.jsonl", Asking(url, "m"))
    with pytest.raises(InvalidInput, match="it begins with http://"):
        answer_prompts(prompts, tmp_path / "out.jsonl", Asking("localhost:1/v1", "m"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "prompts.jsonl:2: is no JSON"),
        ("[]", "prompts.jsonl:2: right would be"),
        ('{"text": "a story"}', "prompts.jsonl:2: right would be"),
        ('{"messages": [{"role": "assistant", "content": "hm"}]}', "prompts.jsonl:2: asks nothing"),
        ('{"messages": [{"role": "usr", "content": "hm"}]}', r"prompts.jsonl:2: messages\[0\]: has the role"),
        ('{"prompt": "a", "tools": [{"type": "function"}]}', "prompts.jsonl:2: tools are not asked with"),
        ('{"prompt": "' + "a" * 2**20 + '"}', "prompts.jsonl:2: is longer than 1048576 bytes"),
    ],
)
def test_a_line_that_asks_nothing_is_named_before_any_request(
    serving: Callable[[Script], Server], tmp_path: Path, line: str, words: str
) -> None:
    server, prompts = serving(echo), tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=words):
        answer_prompts(prompts, tmp_path / "out.jsonl", Asking(server.url, "m"))
    assert not server.asked and not (tmp_path / "out.jsonl").exists()


def test_another_file_is_not_written_into(serving: Callable[[Script], Server], tmp_path: Path) -> None:
    server, prompts = serving(echo), write_prompts(tmp_path / "prompts.jsonl", 2)
    out = tmp_path / "notes.jsonl"
    out.write_text('{"text": "mine"}\n')
    with pytest.raises(InvalidInput, match=r"notes.jsonl:1: is no answer of an earlier run"):
        answer_prompts(prompts, out, Asking(server.url, "m"))
    assert out.read_text() == '{"text": "mine"}\n' and not server.asked
    with pytest.raises(InvalidInput, match="give a temperature"):
        answer_prompts(prompts, tmp_path / "out.jsonl", Asking(server.url, "m", samples=2))


def test_killed_it_goes_on_where_it_was_and_no_answer_is_there_twice(
    serving: Callable[[Script], Server], tmp_path: Path
) -> None:
    def script(body: dict[str, Any], before: int) -> tuple[int, Any]:
        time.sleep(0.1)
        return echo(body, before)

    server, prompts, out = (
        serving(script),
        write_prompts(tmp_path / "prompts.jsonl", 40),
        tmp_path / "out.jsonl",
    )
    command = [sys.executable, "-m", "everlearn", "answers", str(prompts), str(out)]
    options = ["--url", server.url, "--model", "m", "--at-once", "2"]
    environment = os.environ | {"EVERLEARN_HOME": str(tmp_path / "home")}
    first = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE)
    while not (out.exists() and len(out.read_text().splitlines()) >= 5):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    with pytest.raises(Conflict, match="another run is writing"):
        answer_prompts(prompts, out, Asking(server.url, "m"))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = out.read_bytes()
    assert 5 <= kept.count(b"\n") < 40
    out.write_bytes(kept + b'{"messages": [{"role": "us')
    second = subprocess.run([*command, *options, "--json"], env=environment, capture_output=True, check=True)
    told = json.loads(second.stdout)
    assert told["answers"] == 40 and told["asked"] == 40 - kept.count(b"\n")
    assert out.read_bytes().startswith(kept)
    answered = Counter(line["messages"][0]["content"] for line in lines_of(out))
    assert answered == Counter(f"question {at}" for at in range(40))
    assert sum(server.asked.values()) <= 40 + 2, "at most what was under way is asked again"
