"""Pages of WARC files, as crawlers keep them (ISO 28500): each HTML response is an example, its URL the source."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from train.data.examples import Text
from train.data.reading.lines import Reader, wrong
from train.data.reading.web_page import MAX_PAGE_BYTES, main_text

RIGHT = "a WARC file, as wget --warc-file writes it"
PAGES = ("text/html", "application/xhtml+xml")
READ = ("response", "resource", "conversion")
"""Kinds of record that hold what a server sent, or the text that somebody made of it (Common Crawl's WET)."""
MAX_URL_CHARS = 2000
BROKEN = (ValueError, AttributeError, IndexError, KeyError, TypeError)
"""What warcio raises of a record whose headers lack something."""


def read_warc(reader: Reader) -> Iterator[Text]:
    """Texts in the file's order; pages without one say why. Raises InvalidInput naming the file and the record."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    stream = _Stream(reader)
    number = 1
    try:
        records = ArchiveIterator(stream)
        for record in records:
            where = f"{reader.name}:{number}"
            if records.err_count:
                raise wrong(f"{where}: the record before is longer than it says", f"Right would be {RIGHT}")
            if record.rec_headers.get_header("Content-Length") is None:
                raise wrong(
                    f"{where}: the record does not say how long it is, or the file ends there",
                    f"Copy or download it again; right would be {RIGHT}",
                )
            found = _text(record, where)
            _drain(record, where)
            if found is not None:
                yield found
            number += 1
            stream.number = number
        if records.offset < stream.tell() or stream.last not in (b"", b"\n"):  # records end with line breaks
            raise wrong(f"{reader.name}:{number}: the file ends within a record", "Copy or download it again")
    except (ArchiveLoadFailed, EOFError, zlib.error, *BROKEN) as error:
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise wrong(
            f"{reader.name}:{number}: is not a WARC record: {said}", f"Right would be {RIGHT}"
        ) from None


class _Stream:
    """A reader's bytes, as warcio takes them. ``number``: of the record that is read, for messages."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.number = 1
        self.last = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        taken = self._reader.chunk(self.number)
        self._at += len(taken)
        self.last = taken[-1:] or self.last
        return taken

    def tell(self) -> int:
        return self._at


def _text(record: Any, where: str) -> Text | None:
    """None for what is no page: requests, pictures, what the server did not find."""
    if record.rec_type not in READ:
        return None
    headers = record.http_headers
    kind = (headers or record.rec_headers).get_header("Content-Type", "")
    media, _, parameters = kind.partition(";")
    media = media.strip().lower()
    if headers is not None and headers.get_statuscode() != "200":
        return None
    if media not in PAGES and media != "text/plain":
        return None
    url = record.rec_headers.get_header("WARC-Target-URI") or where
    url = url.strip("<>").encode(errors="replace").decode()[:MAX_URL_CHARS]
    content = _content(record)
    if content is None or len(content) > MAX_PAGE_BYTES:
        return Text("", url, "web page", left_out="too_large" if content else "not_whole")
    if media == "text/plain":
        return Text(content.decode(errors="replace"), url, "web page")
    text, reason = main_text(content, _charset(parameters))
    return Text(text, url, "web page", left_out=reason)


def _content(record: Any) -> bytes | None:
    """At most a byte more than a page may have; None where it is not compressed as its headers say."""
    stream = record.content_stream()
    parts: list[bytes] = []
    size = 0
    try:
        while size <= MAX_PAGE_BYTES and (part := stream.read(MAX_PAGE_BYTES + 1 - size)):
            parts.append(part)
            size += len(part)
    except (EOFError, zlib.error):
        return None
    return b"".join(parts)


def _charset(parameters: str) -> str | None:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None


def _drain(record: Any, where: str) -> None:
    """To the record's end, which must be there."""
    while record.raw_stream.read(2**16):
        pass
    if getattr(record.raw_stream, "limit", 0) > 0:
        missing = record.raw_stream.limit
        raise wrong(
            f"{where}: the file ends within the record, {missing} bytes before its end",
            "Copy or download it again",
        )
