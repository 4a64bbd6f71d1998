"""Someone who talks to the server all the time, so that a lost request would be seen."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Self

import httpx

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a short sentence about a river.",
)
PAUSE_S = 2.0
"""Between two answers: a visitor reads, and training has the cores meanwhile."""


class Visitor:
    """Streams one chat answer after the other from ``url`` until closed; use it as a context manager."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="visitor")
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self.first_token_s: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def answers(self) -> int:
        """How many came to their proper end."""
        return self.versions.total()

    def _talk(self) -> None:
        with httpx.Client(base_url=self._url, timeout=300) as client:
            asked = 0
            while not self._over.is_set():
                question = QUESTIONS[asked % len(QUESTIONS)]
                asked += 1
                try:
                    self.versions[self._ask(client, question)] += 1
                except (httpx.HTTPError, ValueError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self._over.wait(PAUSE_S)

    def _ask(self, client: httpx.Client, question: str) -> str:
        """The version that answered. Raises where the answer is an error, breaks off, or is empty."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_completion_tokens": 24,
            "stream": True,
        }
        started = time.monotonic()
        text, reason = "", None
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}: {response.read().decode()[:300]}")
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(f"error in the stream: {event['error']['message']}")
                for choice in event["choices"]:
                    if choice["delta"].get("content") and not text:
                        self.first_token_s.append(time.monotonic() - started)
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
        if reason not in ("stop", "length") or not text.strip():
            raise ValueError(f"an answer ended with {reason!r} after {text!r}")
        return response.headers["x-everlearn-version"]
