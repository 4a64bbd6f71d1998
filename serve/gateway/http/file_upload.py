"""Streams an uploaded file to disk: multipart/form-data, with a limit on every part."""

import asyncio
import errno
from collections.abc import Callable
from typing import Any, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from continual.queue.files import PURPOSE, Client, File, Files, Upload, check_purpose
from everlearn.errors import InvalidInput, Unavailable
from serve.gateway.http.body import chunks
from serve.gateway.http.failures import TooLarge, UnsupportedMediaType

FIELDS = ("purpose", "file")
MAX_FIELD_BYTES = 1024
MAX_FRAME_BYTES = 64 * 1024
"""Everything that is not the file: boundaries, headers, the other field."""

T = TypeVar("T")


async def receive_file(request: Request, files: Files, client: Client, checks: asyncio.Semaphore) -> File:
    """Store the file of an upload. A training file is checked first, as many at a time as ``checks`` allows.

    An upload that fails leaves nothing behind. Raises InvalidInput, UnsupportedMediaType, TooLarge, FileTooLarge,
    SlowBody, Unavailable.
    """
    boundary = _boundary(request)
    limit_bytes = files.settings.continual.max_file_bytes + MAX_FRAME_BYTES
    too_large = TooLarge(f"The upload is longer than {limit_bytes} bytes.")
    if int(request.headers.get("content-length", "0")) > limit_bytes:
        raise too_large
    with files.uploading() as upload:
        form = Form(boundary, upload)
        left_bytes = limit_bytes
        async for chunk in chunks(request, files.settings.serve.body_timeout_s):
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise too_large
            await asyncio.to_thread(_on_disk, form.feed, chunk)
        filename, purpose = form.end()
        if purpose == PURPOSE:
            async with checks:
                await asyncio.to_thread(_on_disk, lambda: files.check(upload, filename))
        return await asyncio.to_thread(
            _on_disk, lambda: files.keep(upload, filename, purpose=purpose, client=client)
        )


class Form:
    """A parser whose one file goes to ``upload`` as it comes."""

    def __init__(self, boundary: bytes, upload: Upload) -> None:
        self._upload = upload
        self._name = ""
        self._header = [b"", b""]
        self._disposition = b""
        self._filename: str | None = None
        self._values: dict[str, bytearray] = {}
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise InvalidInput(f"The upload's boundary cannot be used: {error}.") from None

    def feed(self, chunk: bytes) -> None:
        """Raises InvalidInput, FileTooLarge, OSError."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidInput(f"The upload is not valid multipart/form-data: {error}.") from None

    def end(self) -> tuple[str, str]:
        """Filename and purpose. Raises InvalidInput where something is missing."""
        if not self._complete:
            raise InvalidInput("The upload breaks off before its last boundary.")
        if self._filename is None:
            raise InvalidInput("Missing the file: send it as the form's field 'file'.", param="file")
        if "purpose" not in self._values:
            raise InvalidInput("Missing 'purpose': send 'fine-tune' or 'batch'.", param="purpose")
        purpose = self._values["purpose"].decode("utf-8", "replace")
        check_purpose(purpose)
        return self._filename, purpose

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._header = [b"", b""]

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")[:64]
        if self._name not in FIELDS:
            raise InvalidInput(f"Unknown form field {self._name!r}: send 'purpose' and 'file'.")
        if self._name in self._values or (self._name == "file" and self._filename is not None):
            raise InvalidInput(f"The form has the field {self._name!r} twice.", param=self._name)
        if self._name == "purpose":
            self._values["purpose"] = bytearray()
        elif b"filename" not in options:
            raise InvalidInput("'file' has no filename: send it as a file.", param="file")
        else:
            self._filename = options[b"filename"].decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._upload.write(memoryview(data)[start:end])
            return
        value = self._values[self._name]
        value += data[start:end]
        if len(value) > MAX_FIELD_BYTES:
            raise InvalidInput(f"{self._name!r} is too long.", param=self._name)

    def _on_end(self) -> None:
        self._complete = True


def _boundary(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted.", param="content-encoding")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType(
            "Send the file as 'Content-Type: multipart/form-data'.", param="content-type"
        )
    if not options.get(b"boundary"):
        raise InvalidInput("The Content-Type names no boundary.", param="content-type")
    return options[b"boundary"]


def _on_disk(act: Callable[..., T], *arguments: Any) -> T:
    """Run in a thread. Raises Unavailable when the disk is full: the client may retry later."""
    try:
        return act(*arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable("The server has no room for this file now.") from None
