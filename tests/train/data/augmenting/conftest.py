"""Scripted servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.scripted_server import Script, Server


@pytest.fixture
def serving() -> Iterator[Callable[[Script], Server]]:
    made: list[Server] = []

    def start(script: Script) -> Server:
        made.append(Server(script))
        return made[-1]

    yield start
    for one in made:
        one.http.shutdown()
        one.http.server_close()
