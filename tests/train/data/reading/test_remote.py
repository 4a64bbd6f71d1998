"""Files elsewhere: through fsspec's own memory and HTTP, with a real server that breaks off."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from everlearn.errors import InvalidInput, NotFound, Unavailable
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading.remote import fetch
from train.data.reading.sources import expand
from train.recipe import TrainRecipe, read_recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "home"


class Handler(SimpleHTTPRequestHandler):
    """Of a folder, with an ETag of each content and ranges; ``cut``: the answer of that number breaks off."""

    cut: int | None = None
    asked: list[str | None] = []  # noqa: RUF012 (one per server class)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        begin = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        end = int(wanted.split("-")[1] or len(content) - 1) + 1 if wanted else len(content)
        part = content[begin:end]
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        if body:
            broken = len(self.asked) == self.cut
            self.asked.append(wanted)
            self.wfile.write(part[: len(part) // 2] if broken else part)
            self.close_connection = broken

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, type[Handler]]]:
    folder = tmp_path / "www"
    folder.mkdir()
    kind = type("Server", (Handler,), {"asked": [], "cut": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder, kind
        running.shutdown()


def lines(number: int) -> str:
    return "".join(
        json.dumps({"text": f"The text number {n} says what it says, {n}."}) + "\n" for n in range(number)
    )


def test_a_file_is_downloaded_once_and_again_when_it_is_another(
    server: tuple[str, Path, type[Handler]],
) -> None:
    url, folder, kind = server
    (folder / "a.jsonl").write_text(lines(3))
    (first,) = fetch(f"{url}/a.jsonl")
    assert first.name == "a.jsonl" and first.path.read_text() == lines(3)
    assert fetch(f"{url}/a.jsonl") == [first] and len(kind.asked) == 1
    (folder / "a.jsonl").write_text(lines(4))
    assert fetch(f"{url}/a.jsonl")[0].path.read_text() == lines(4)


def test_a_broken_download_leaves_nothing_that_is_read_and_goes_on_where_it_was(
    server: tuple[str, Path, type[Handler]], home: Path
) -> None:
    url, folder, kind = server
    content = lines(200_000)
    (folder / "a.jsonl").write_text(content)
    kind.cut = 1
    with pytest.raises(Unavailable, match=r"a\.jsonl"):
        fetch(f"{url}/a.jsonl")
    assert not list((home / "cache/data/contents").iterdir())
    assert fetch(f"{url}/a.jsonl")[0].path.read_text() == content
    assert kind.asked[0] and kind.asked[0].startswith("bytes=0-")
    assert not any(asked and asked.startswith("bytes=0-") for asked in kind.asked[1:]), "it began anew"


def test_prepared_data_is_the_same_from_anywhere(
    server: tuple[str, Path, type[Handler]], tmp_path: Path, tokenizer_dir: Path
) -> None:
    url, folder, _ = server
    (folder / "a.jsonl").write_text(lines(30))
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines(30).encode())
    memory.pipe("/corpus/notes.weird", b"?")
    sources = (folder / "a.jsonl", f"{url}/a.jsonl", "memory://corpus", "memory://corpus/*.jsonl")
    cards = [
        prepare([source], tokenizer_dir, tmp_path / f"out{n}", DataOptions())
        for n, source in enumerate(sources)
    ]
    assert len({card.train.store_sha256 for card in cards}) == 1
    assert cards[2].skipped["of unknown kind"].names == ["notes.weird"]


def test_a_recipe_names_urls_beside_paths(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "base: m\ndata: {train: [texts, 's3://bucket/a.jsonl', 'hf://datasets/o/n'], held: 'https://h.example/x.txt'}"
    )
    data = read_recipe(tmp_path / "recipe.yaml").data
    assert data.train == (tmp_path / "texts", "s3://bucket/a.jsonl", "hf://datasets/o/n")
    assert data.held == ("https://h.example/x.txt",)
    dumped = read_recipe(tmp_path / "recipe.yaml").model_dump(mode="json")
    assert TrainRecipe.model_validate(dumped).data == data


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("zip://a.txt::http://h.example/b.zip", InvalidInput, "is not read. Right would be a path, or s3://"),
        ("file:///etc/passwd", InvalidInput, "is not read"),
        ("memory://nothing/here.txt", NotFound, "there is no file memory://nothing/here.txt"),
        ("http://127.0.0.1:9/a.jsonl", Unavailable, "http://127.0.0.1:9/a.jsonl cannot be read: .*127.0.0.1"),
        (
            "s3://bucket/a.jsonl?region=x&scheme=http&endpoint_override=127.0.0.1:9",
            Unavailable,
            "s3://bucket/a.jsonl cannot be read: .*Credentials are read from AWS_ACCESS_KEY_ID",
        ),
        (
            "hf://datasets/nobody/nothing",
            Unavailable,
            "cannot be read: .*HF_TOKEN; without a network, download it",
        ),
    ],
)
def test_what_cannot_be_read_is_one_error(
    url: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(kind, match=message):
        expand([url])


def test_no_password_is_shown() -> None:
    with pytest.raises(Unavailable) as error:
        expand(["http://me:secret@127.0.0.1:9/a.jsonl?signature=secret"])
    assert "secret" not in error.value.message
