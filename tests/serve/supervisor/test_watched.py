"""When a watched process is given up, and when it is not."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from everlearn.processes.program import environment
from serve.supervisor.watched import Patience, WatchedProcess

ENGINE = Path(__file__).parents[2] / "support" / "serve" / "fake_engine.py"
IMPATIENT = Patience(hung_s=0.6, poll_s=0.05, settled_s=60, quick_crashes=2, backoff_s=0.05)


class Ends:
    """How often a process was ready, and how each of its lives ended."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.reasons: list[tuple[str, bool]] = []

    async def started(self, pid: int) -> None:
        self.ready.clear()

    async def healthy(self, health: dict[str, Any]) -> None:
        self.ready.set()

    async def ended(self, reason: str, *, given_up: bool) -> None:
        self.reasons.append((reason, given_up))


def watched(folder: Path, ends: Ends) -> WatchedProcess:
    (folder / "bundle.json").write_text(json.dumps({"architecture": "fake"}))
    at = folder / "engine.sock"
    argv = [sys.executable, str(ENGINE), "--bundle", str(folder), "--model", "tiny"]
    return WatchedProcess(
        [*argv, "--version", "1", "--uds", str(at)], environment(), at=at, observer=ends, patience=IMPATIENT,
        on_line=lambda line: None,
    )  # fmt: skip


async def ask(at: Path, text: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    connector = aiohttp.UnixConnector(str(at))
    async with aiohttp.ClientSession("http://engine", connector=connector) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post("/v1/chat/completions", json=body)


def test_requests_that_hang_an_engine_never_make_it_given_up(tmp_path: Path) -> None:
    async def scene() -> list[tuple[str, bool]]:
        ends = Ends()
        engine = watched(tmp_path, ends)
        engine.start()
        for _ in range(IMPATIENT.quick_crashes + 1):
            await asyncio.wait_for(ends.ready.wait(), 20)
            await ask(engine.at, "/hang")
            while ends.ready.is_set() and engine.state != "failed":
                await asyncio.sleep(0.02)
        await asyncio.wait_for(ends.ready.wait(), 20)
        await engine.stop(1)
        return ends.reasons

    reasons = asyncio.run(scene())
    assert len(reasons) == IMPATIENT.quick_crashes + 1
    assert all("no health" in reason and not given_up for reason, given_up in reasons)


def test_an_engine_that_dies_quickly_is_given_up(tmp_path: Path) -> None:
    async def scene() -> list[tuple[str, bool]]:
        ends = Ends()
        engine = watched(tmp_path, ends)
        engine.start()
        for _ in range(IMPATIENT.quick_crashes):
            await asyncio.wait_for(ends.ready.wait(), 20)
            engine.kill()
            while ends.ready.is_set() and not any(given_up for _, given_up in ends.reasons):
                await asyncio.sleep(0.02)
        return ends.reasons

    reasons = asyncio.run(scene())
    assert [given_up for _, given_up in reasons] == [False, True]
