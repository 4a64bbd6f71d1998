"""Clients that never stop asking while versions are swapped, and what the tests look at meanwhile."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from everlearn.registry.database import open_database
from everlearn.registry.registry import Registry, Version
from everlearn.registry.tables import ReplicaRow
from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually


@dataclass
class Clients:
    """What streaming clients saw: their answers by version, and everything that went wrong."""

    answers: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def receive(self, more: int, version: Version, within_s: float = 60.0) -> None:
        """Waits until `more` further answers of `version` have come."""
        enough = self.answers.get(version.ref, 0) + more
        eventually(lambda: self.answers.get(version.ref, 0) >= enough, within_s=within_s)


@contextmanager
def streaming(url: str, count: int, body: dict[str, object], mixed: bool = True) -> Iterator[Clients]:
    """`count` clients that send `body` again and again; with `mixed` the fake engine's words name its version."""
    clients, stop = Clients(), threading.Event()
    threads = [
        threading.Thread(target=_stream_on, args=(url, body, mixed, clients, stop)) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _stream_on(
    url: str, body: dict[str, object], mixed: bool, clients: Clients, stop: threading.Event
) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            try:
                version, text = stream(client, body)
                if mixed and set(text.split()) != {f"v{version.partition('@')[2]}"}:
                    raise AssertionError(f"an answer of {version} says {text}")
            except (httpx.HTTPError, AssertionError) as error:
                clients.faults.append(f"{type(error).__name__}: {error}")
            else:
                clients.answers[version] = clients.answers.get(version, 0) + 1


def stream(client: httpx.Client, body: dict[str, object]) -> tuple[str, str]:
    """The version that answered, and its text; AssertionError unless the answer is whole."""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.status_code == 200, f"status {response.status_code}: {lines}"
    assert lines[-1] == "data: [DONE]", f"broken off: {lines[-1][:200]}"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return response.headers["x-everlearn-version"], "".join(delta.get("content") or "" for delta in deltas)


class ServedHome:
    """A home with versions of `tiny` that a supervisor serves, and ways to move its champion."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home: Path = settings.home
        self.registry = Registry(settings)
        self.count = 0
        self.add()

    def add(self, architecture: str = "fake") -> Version:
        """One more version; `architecture` says how it misbehaves."""
        self.count += 1
        return add_model(self.settings, "tiny", architecture=architecture, parameters=self.count)

    def champion(self) -> Version:
        return self.registry.resolve("tiny@champion")

    def rows(self) -> dict[int, ReplicaRow]:
        """The newest row of each version."""
        with Session(open_database(self.settings)) as session:
            query = select(ReplicaRow).order_by(ReplicaRow.started_at)
            return {row.version: row for row in session.scalars(query)}

    def state(self, version: Version) -> str | None:
        row = self.rows().get(version.version)
        return row.state if row else None

    def refusal(self, version: Version, within_s: float = 60.0) -> str:
        """Why `version` was refused."""
        eventually(lambda: self.state(version) == "failed", within_s=within_s)
        return self.rows()[version.version].error or ""


def serves(server: Supervised, version: Version) -> bool:
    """Whether new requests are answered by `version`, and by nothing else."""
    answers = [server.ask("hello").headers.get("x-everlearn-version") for _ in range(3)]
    return set(answers) == {version.ref}
