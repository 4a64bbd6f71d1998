"""Paraphrases by a server that answers as it is told: what is asked, kept, left out, taken up again and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from everlearn.cli.commands import app
from everlearn.errors import AuthError, Conflict, InvalidInput
from train.data.augmenting import answers
from train.data.augmenting.answers import Asking
from train.data.augmenting.paraphrase import paraphrase

Answer = tuple[int, dict[str, Any]]


class Server:
    """``answer`` makes a status and a body of each request's body; ``asked`` has the texts."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: said(f"Said anew: {text_of(body)}")
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.keys.add(self.headers.get("Authorization"))
                status, answer = server.answer(body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def said(text: str, finish: str = "stop") -> Answer:
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"].partition("\n\n")[2]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(answers, "LONGEST_WAIT_S", 0.01)
    made = Server()
    yield made
    made.close()


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
    server.answer = lambda body: said(f"({'x' * next(seeds)}) {text_of(body)}")
    asking = Asking(server.url, "small", "secret", samples=2, temperature=0.5)
    made = paraphrase(mails, tmp_path / "more.jsonl", asking, kind="classification")
    more = records(tmp_path / "more.jsonl")
    assert (made.read, made.kept, len(more)) == (6, 12, 12)
    assert [line["label"] for line in more[:4]] == ["tell", "tell", "ask", "ask"]
    assert all(line["text"].endswith(f"Mail {n // 2} asks for a new room") for n, line in enumerate(more))
    assert server.keys == {"Bearer secret"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mails.jsonl", "more.jsonl"]


def test_there_and_back_through_another_language(server: Server, mails: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return said(f"{'es' if 'into Spanish' in body['messages'][0]['content'] else 'en'} {text_of(body)}")

    server.answer = answer
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
    server.answer = lambda body: answers[int(text_of(body).split()[1])]
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
    good = server.answer
    server.answer = lambda body: good(body) if len(server.asked) <= 3 else (401, {"error": {"message": "no"}})
    with pytest.raises(AuthError):
        paraphrase(mails, out, asking, kind="classification")
    assert not out.exists()
    server.answer, before = good, len(server.asked)
    assert paraphrase(mails, out, asking, kind="classification").kept == 6
    assert len(server.asked) == before + 3
    with pytest.raises(Conflict, match="exists: remove it"):
        paraphrase(mails, out, asking, kind="classification")


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
