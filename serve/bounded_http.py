"""HTTP/1 on one connection: uvicorn's protocol, bounded, and with one reading of where each request ends."""

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.protocol.parsing import error_body

MAX_HEADER_BYTES = 64 * 1024
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
DISCARD_S = 30
"""How long the rest of a body may take that nobody reads any more."""
HEADER_TIMEOUT_S = 30
HEAD_TOO_LONG = "The request's URL and headers are too long."


class Refused(Exception):
    """Stops the parser; never leaves this module."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Cycle(RequestResponseCycle):
    """An answer whose end every client can tell."""

    _until_close = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if (
                self.waiting_for_100_continue
            ):  # whether the body still comes is open, so nothing may follow it
                self.keep_alive = False
            if self.scope["http_version"] == "1.0" and not _has_length(message):
                self._until_close, self.chunked_encoding = True, False
        elif self._until_close and self.scope["method"] != "HEAD":
            # HTTP/1.0 knows no chunks: the connection's end is the answer's.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class BoundedHttp(HttpToolsProtocol):
    """Refuses headers that are too long or too slow, and bodies nobody reads any more; ignores upgrades."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = self._raw_head_bytes = self._discarded_bytes = 0
        self._in_head, self._in_body = True, False
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError as error:
            reason = error.__context__
            if isinstance(reason, Refused):
                self._refuse(reason.status, reason.message)
            else:
                self._refuse(400, "Invalid HTTP request received.")
        else:
            if self._in_head and not self.transport.is_closing():
                self._raw_head_bytes += len(data)  # the parser tells of a header only when it is complete
                if self._raw_head_bytes > MAX_HEADER_BYTES:
                    self._refuse(431, HEAD_TOO_LONG)

    def _parse(self, data: memoryview) -> None:
        """To the parser an upgrade ends HTTP at the head, and what follows would be read as the next request.

        No upgrade is offered here, so it reads such a head again without the header, and then the body.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(
                    lenient_data_after_close=True
                )  # ignored, as by uvicorn's
                self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._raw_head_bytes = self._discarded_bytes = 0
        self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._head_too_slow)

    def on_url(self, url: bytes) -> None:
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise Refused(405, "CONNECT is not allowed here.")
        if self.parser.should_upgrade():
            return
        self._in_head, self._in_body = False, True
        self._timer.cancel()
        super().on_headers_complete()
        self.cycle.__class__ = Cycle
        self.scope["everlearn.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._timer.cancel()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            self._timer = self.loop.call_later(DISCARD_S, self.transport.abort)

    def _count_head(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            raise Refused(431, HEAD_TOO_LONG)

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, "The request's headers did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        """Close, with the reason where it cannot be taken for the answer to another request or for a part of it."""
        cycle = self.cycle
        if self._in_body:
            may_answer = not cycle.response_started and not self.pipeline
        else:
            may_answer = cycle is None or cycle.response_complete
        if may_answer:
            body = json.dumps(error_body(message, "invalid_request_error", None, "bad_request")).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()


def _has_length(start: Any) -> bool:
    return any(name.lower() == b"content-length" for name, _ in start["headers"])
