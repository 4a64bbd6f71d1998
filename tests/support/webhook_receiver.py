"""A real HTTP server on loopback that receives webhooks and answers as it is told."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = int | Callable[[BaseHTTPRequestHandler], None]
"""A status, or what writes the answer by itself."""


class Receiver:
    """``answers`` in their order, the last one for ever. ``received``: the headers and the body of each request."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers or (204,))
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.released = threading.Event()
        lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with lock:
                    at = min(len(receiver.received), len(receiver.answers) - 1)
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.received.append((headers, body))
                answer = receiver.answers[at]
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_CONNECT = do_POST  # a redirect or a proxy would come so

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.received]

    def hold(self, handler: BaseHTTPRequestHandler) -> None:
        """An answer that does not come until the receiver is released."""
        self.released.wait(60)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receivers() -> Generator[Callable[..., Receiver]]:
    """Makes receivers, which end with it."""
    made: list[Receiver] = []

    def make(*answers: Answer) -> Receiver:
        made.append(Receiver(*answers))
        return made[-1]

    try:
        yield make
    finally:
        for receiver in made:
            receiver.close()
