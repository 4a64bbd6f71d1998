"""A channel's folder over HTTP by a server that is busy, slow, or breaks off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[[BaseHTTPRequestHandler, bytes], bool]
"""Gets the request and the file's bytes; whether it has answered."""


@contextmanager
def bad_server(folder: Path, fault: Fault) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
            elif not fault(self, content := file.read_bytes()):
                answer(self, 200, content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(
    request: BaseHTTPRequestHandler, status: int, content: bytes, length: int = -1, **headers: str
) -> None:
    request.send_response(status)
    for name, value in {**headers, "content_length": str(len(content) if length < 0 else length)}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(content)


def busy(seen: dict[str, list[float]], times: int, status: int, wait: str, part: str = "") -> Fault:
    """Refuses each path that has ``part`` so many times; ``seen``: when it was asked for."""

    def refuse(request: BaseHTTPRequestHandler, _: bytes) -> bool:
        asked = seen.setdefault(request.path, [])
        asked.append(time.monotonic())
        if part not in request.path or len(asked) > times:
            return False
        answer(request, status, b"busy", retry_after=wait)
        return True

    return refuse


def dripping(part: str, for_s: float) -> Fault:
    """Sends a byte at a time, for ``for_s`` at most."""

    def drip(request: BaseHTTPRequestHandler, content: bytes) -> bool:
        if part not in request.path:
            return False
        request.send_response(200)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        end = time.monotonic() + for_s
        try:
            for at in range(len(content)):
                if time.monotonic() > end:
                    break
                request.wfile.write(content[at : at + 1])
                time.sleep(0.02)
        except OSError:
            pass  # the client left
        return True

    return drip


def breaking(part: str) -> Fault:
    """Ends a body after half of its bytes."""

    def break_off(request: BaseHTTPRequestHandler, content: bytes) -> bool:
        if part in request.path:
            answer(request, 200, content[: len(content) // 2], length=len(content))
        return part in request.path

    return break_off
