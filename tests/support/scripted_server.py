"""An OpenAI server that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any], int], tuple[int, Any]]


class Server:
    """An OpenAI server that follows a script: status and body for a request and how often its text came before."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = body["messages"][-1]["content"]
                with lock:
                    before = server.asked[text]
                    server.asked[text] += 1
                    server.keys.append(self.headers.get("authorization"))
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    status, said = (
                        server.script(body, before) if self.path == "/v1/chat/completions" else (404, {})
                    )
                    if status == 0:
                        self.connection.close()
                        return
                    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                    self.send_response(status)
                    self.send_header("content-length", str(len(raw)))
                    self.send_header("retry-after", "0.05")
                    self.end_headers()
                    self.wfile.write(raw)
                finally:
                    with lock:
                        server.at_once -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def said(text: str, reason: str = "stop") -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
