"""HTML and WARC: the text of pages, and hostile ones in bounded time."""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from everlearn.errors import InvalidInput
from train.data.examples import Text
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.reading import web_page
from train.data.reading.read import read_examples
from train.data.reading.web_page import main_text

SAID = [f"This is paragraph {n} of an article, with enough words in it to count." for n in range(6)]
PAGE = (
    "<html><head><title>News</title><script>alert(1)</script></head><body><nav><a href=/>Home</a></nav><article>"
    + "".join(f"<p>{each}</p>" for each in SAID)
    + "</article><footer>Accept cookies</footer></body></html>"
)
DEEP = "<div>" * 5000 + "far down"


def write_warc(path: Path, pages: Iterable[tuple[str, bytes, str, str]]) -> Path:
    """Pages (URL, body, content type, status) as responses; gzipped record by record where the name says so."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for url, body, kind, status in pages:
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            response = writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), http_headers=headers
            )
            writer.write_record(response)
    return path


def texts(path: Path) -> list[Text]:
    read = list(read_examples(path))
    assert all(isinstance(each, Text) for each in read)
    return read  # type: ignore[return-value]


CRAWL = [
    ("http://a.example/1", PAGE.encode(), "text/html; charset=utf-8", "200 OK"),
    ("http://a.example/cat.png", b"\x89PNG", "image/png", "200 OK"),
    ("http://a.example/gone", b"gone", "text/html", "404 Not Found"),
    ("http://a.example/2", PAGE.replace("article,", "größe").encode("latin-1"), "text/html;charset=latin-1", "200 OK"),
    ("http://a.example/deep", DEEP.encode(), "text/html", "200 OK"),
    ("http://a.example/empty", b"<html><body></body></html>", "text/html", "200 OK"),
]  # fmt: skip


def test_a_page_gives_its_article_and_nothing_around_it(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    (page,) = texts(tmp_path / "page.html")
    assert page.text.split("\n") == SAID and page.source == "page.html:1"


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_each_page_of_a_crawl_is_an_example_under_its_url(tmp_path: Path, name: str) -> None:
    read = texts(write_warc(tmp_path / name, CRAWL))
    assert [(each.source, each.left_out) for each in read] == [
        ("http://a.example/1", None),
        ("http://a.example/2", None),
        ("http://a.example/deep", "too_deep"),
        ("http://a.example/empty", "no_main_text"),
    ]
    assert "größe" in read[1].text and read[0].text.split("\n") == SAID


def test_the_card_counts_pages_that_gave_no_text(tmp_path: Path, tokenizer_dir: Path) -> None:
    card = prepare(
        [write_warc(tmp_path / "crawl.warc.gz", CRAWL)], tokenizer_dir, tmp_path / "out", DataOptions()
    )
    assert card.read == 4 and card.dropped["too_deep"] == 1 and card.dropped["no_main_text"] == 1


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_crawl_that_is_cut_off_names_the_record(tmp_path: Path, name: str) -> None:
    pages = [(f"http://a.example/{n}", b"Some plain words.\n" * n, "text/plain", "200 OK") for n in (1, 2, 3)]
    suffix = ".warc" if name == "crawl.warc" else ".gz"
    ends = [write_warc(tmp_path / f"{n}{suffix}", pages[:n]).stat().st_size for n in (1, 2, 3)]
    whole = (tmp_path / f"3{suffix}").read_bytes()
    for size in range(1, ends[-1], 7):
        (tmp_path / name).write_bytes(whole[:size])
        try:
            read = texts(tmp_path / name)
        except InvalidInput as error:
            assert error.message.startswith(f"{name}:") or error.message.startswith(f"{name} ")
        else:  # after a record, or within the line breaks that end one
            assert any(end - 5 < size < end + 8 for end in ends) and len(read) in (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.warc", b"hello\nworld\n" * 20, "a.warc:1: is not a WARC record"),
        ("a.warc", b"PK\x03\x04" + b"x" * 50, "a.warc:1: is a ZIP archive, not a WARC file"),
        ("a.html.gz", gzip.compress(b"<p>" * 10**7), "a.html.gz:1: the page is larger than 2097152 bytes"),
        ("a.html.gz", b"<html>not gzip</html>", "a.html.gz: is not whole gzip"),
        ("a.html", DEEP.encode(), "a.html:1: the page has elements more than 1000 deep in each other"),
    ],
)
def test_what_cannot_be_read_is_one_error_with_its_place(
    tmp_path: Path, tokenizer_dir: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"^{message}"):
        prepare([tmp_path / name], tokenizer_dir, tmp_path / "out", DataOptions())
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_page_that_keeps_the_parser_busy_is_stopped_and_the_next_one_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With half a second, since it would take minutes."""
    hostile = "<div " + " ".join(f"a{n}=1" for n in range(60_000)) + ">text</div>"
    monkeypatch.setattr(web_page, "PAGE_CPU_S", 0.5)
    assert main_text(hostile.encode()) == ("", "too_slow")
    assert main_text(PAGE.encode())[0].split("\n") == SAID


def test_a_declared_encoding_is_used_and_a_wrong_one_does_no_harm() -> None:
    assert "größe" in main_text(PAGE.replace("article,", "größe").encode("latin-1"), "iso-8859-1")[0]
    for wrong in ("no-such", "utf-16", "idna", "utf-8\0", "rot13", "zlib"):
        assert main_text(PAGE.encode(), wrong)[1] in (None, "no_main_text")
