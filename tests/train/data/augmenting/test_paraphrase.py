"""Paraphrases by a server that answers as it is told: what is asked, kept, left out, taken up again and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import AuthError, Conflict, InvalidInput, NotFound
from tests.support.scripted_server import Script, Server, said
from train.data.augmenting.answers import Asking
from train.data.augmenting.paraphrase import paraphrase


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"].partition("\n\n")[2]


@pytest.fixture
def server(serving: Callable[[Script], Server]) -> Server:
    return serving(lambda body, _: said(f"Said anew: {text_of(body)}"))


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    file = tmp_path / "mails.jsonl"
    lines = [{"text": f"Mail {n} asks for a new room", "label": "ask" if n % 2 else "tell"} for n in range(6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_example_gets_copies_with_its_label(server: Server, mails: Path, tmp_path: Path) -> None:
    seeds = iter(range(1, 100))
    server.script = lambda body, _before: said(f"({'x' * next(seeds)}) {text_of(body)}")
    asking = Asking(server.url, "small", "secret", samples=2, temperature=0.5)
    made = paraphrase(mails, tmp_path / "more.jsonl", asking, kind="classification")
    more = records(tmp_path / "more.jsonl")
    assert (made.read, made.kept, len(more)) == (6, 12, 12)
    assert [line["label"] for line in more[:4]] == ["tell", "tell", "ask", "ask"]
    assert all(line["text"].endswith(f"Mail {n // 2} asks for a new room") for n, line in enumerate(more))
    assert set(server.keys) == {"Bearer secret"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mails.jsonl", "more.jsonl"]


def test_there_and_back_through_another_language(server: Server, mails: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _before: int) -> tuple[int, Any]:
        return said(f"{'es' if 'into Spanish' in body['messages'][0]['content'] else 'en'} {text_of(body)}")

    server.script = answer
    asking = Asking(server.url, "small", samples=2, temperature=0.5)
    paraphrase(mails, tmp_path / "more.jsonl", asking, kind="classification", through="Spanish")
    assert records(tmp_path / "more.jsonl")[0]["text"] == "en es Mail 0 asks for a new room"


def test_what_can_be_told_to_be_wrong_is_left_out_and_said(
    server: Server, mails: Path, tmp_path: Path
) -> None:
    answers = {
        0: said("mail 0 asks: for a new room!"),
        1: said("Mail 2 asks for another room"),
        2: said("  "),
        3: said("Mail 3 wants", "length"),
        4: said("Mail 4 " + "and so on " * 20),
        5: said("A new room is what mail 5 is about"),
    }
    server.script = lambda body, _before: answers[int(text_of(body).split()[1])]
    made = paraphrase(mails, tmp_path / "more.jsonl", Asking(server.url, "small"), kind="classification")
    assert records(tmp_path / "more.jsonl") == [
        {"text": "A new room is what mail 5 is about", "label": "ask"}
    ]
    assert made.told() == (
        "1 paraphrases of 6 examples; left out: as it was, or as another copy 1, far longer or shorter 1, "
        "no answer that ended 2, other numbers 1"
    )


def test_it_goes_on_where_it_stopped(server: Server, mails: Path, tmp_path: Path) -> None:
    out, asking = tmp_path / "more.jsonl", Asking(server.url, "small", at_once=1)
    good = server.script
    server.script = lambda body, _before: (
        good(body, 0) if server.asked.total() <= 3 else (401, {"error": {"message": "no"}})
    )
    with pytest.raises(AuthError):
        paraphrase(mails, out, asking, kind="classification")
    assert not out.exists()
    server.script, before = good, server.asked.total()
    assert paraphrase(mails, out, asking, kind="classification").kept == 6
    assert server.asked.total() == before + 3
    with pytest.raises(Conflict, match="exists: remove it"):
        paraphrase(mails, out, asking, kind="classification")


def test_a_changed_file_goes_on_with_the_answers_that_still_serve(
    server: Server, mails: Path, tmp_path: Path
) -> None:
    out, asking = tmp_path / "more.jsonl", Asking(server.url, "small", at_once=1)
    good = server.script
    server.script = lambda body, _before: good(body, 0) if server.asked.total() <= 3 else (401, {})
    with pytest.raises(AuthError):
        paraphrase(mails, out, asking, kind="classification")
    server.script = good
    mails.write_text(mails.read_text().replace("Mail 0", "Letter 0"))
    assert paraphrase(mails, out, asking, kind="classification").kept == 6
    assert records(out)[0]["text"] == "Said anew: Letter 0 asks for a new room"


def test_strange_texts_and_answers_spoil_no_others(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    texts = ["half", "राम की किताब", " ", "好" * 349_500, "good"]
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    answers = {"half": "\ud800 half of it", "राम की किताब": "राम का किताब", "good": "fine"}
    server.script = lambda body, _before: said(answers[text_of(body)])
    made = paraphrase(file, tmp_path / "more.jsonl", Asking(server.url, "small"))
    assert [line["text"] for line in records(tmp_path / "more.jsonl")] == ["राम का किताब", "fine"]
    assert (made.read, made.left_out.total()) == (5, 3)
    assert sum(server.asked.values()) == 3


def test_what_would_be_lost_is_refused(server: Server, mails: Path, tmp_path: Path) -> None:
    asking = Asking(server.url, "small")
    with pytest.raises(InvalidInput, match=r'mails\.jsonl:1: its "label" would be lost'):
        paraphrase(mails, tmp_path / "more.jsonl", asking)
    server.script = lambda body, _before: (400, {"error": {"message": "max_tokens is too large"}})
    with pytest.raises(InvalidInput, match=r"no text got an answer that ended.*max_tokens is too large"):
        paraphrase(mails, tmp_path / "more.jsonl", asking, kind="classification")
    with pytest.raises(InvalidInput, match="JSON lines"):
        paraphrase(mails, tmp_path / "more.jsonl.gz", asking, kind="classification")
    with pytest.raises(NotFound, match="is no folder"):
        paraphrase(mails, tmp_path / "none" / "more.jsonl", asking, kind="classification")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"anchor": "hello my friend", "positive": "hello my friend"}\n')
    server.script = lambda body, _before: said(text_of(body))
    assert paraphrase(pairs, tmp_path / "same.jsonl", asking, kind="embedding").kept == 0


@pytest.mark.parametrize("kind", ["token-classification", "question-answering", "contrastive", "chat"])
def test_kinds_that_other_words_would_break_are_refused(mails: Path, tmp_path: Path, kind: Any) -> None:
    with pytest.raises(InvalidInput, match="is not paraphrased"):
        paraphrase(mails, tmp_path / "more.jsonl", Asking("http://127.0.0.1:9/v1", "small"), kind=kind)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    with pytest.raises(InvalidInput, match=r"chats\.jsonl:1: is a conversation"):
        paraphrase(chats, tmp_path / "more.jsonl", Asking("http://127.0.0.1:9/v1", "small"))


def test_the_command_warns_of_texts_that_may_be_held_out(server: Server, mails: Path, tmp_path: Path) -> None:
    asked = ["--model", "small", "--url", server.url, "--kind", "classification"]

    def run(file: Path, out: str, *others: str) -> Any:
        return CliRunner().invoke(
            app, ["data", "paraphrase", str(file), str(tmp_path / out), *asked, *others]
        )

    done = run(mails, "more.jsonl")
    assert done.exit_code == 0, done.output
    assert "note: what is held out" in done.output and "6 paraphrases of 6 examples" in done.output
    prepared = tmp_path / "train.jsonl"
    prepared.write_bytes(mails.read_bytes())
    (tmp_path / "card.json").write_text("{}")
    done = run(prepared, "b.jsonl")
    assert done.exit_code == 0 and "note:" not in done.output
    done = run(mails, "c.jsonl", "--kind", "letters")
    assert done.exit_code == 2 and "one of auto, text, chat, classification" in done.output
