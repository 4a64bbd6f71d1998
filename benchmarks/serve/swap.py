"""Clients that stream while the champion moves: `python -m benchmarks.serve.swap --clients 50 --swaps 20 --kills`.

Two versions of one model, which differ in their system prompt alone, take turns as champion of a running
`everlearn serve`. Every answer is greedy and was learned beforehand from each version, so each client knows what it
must read from the version that the answer's header names: one wrong character is a mixed answer. A swap begins when
the one before has ended, and its old engine stands by or, with EVERLEARN_SERVE__KEEP_PREVIOUS=off, is gone. The time to the first token is measured with swaps and,
for as long after them, without. Two gateways share one port, and their limits
through a Valkey. With `--kills` the engine, one gateway and Valkey are killed by SIGKILL while all clients stream:
only requests that were under way may fail, and what fails is told by how it ended.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import psutil
from sqlalchemy import Engine, func, select

from everlearn.bundles.bundle import write_bundle
from everlearn.registry.database import open_database, read
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry, Version
from everlearn.registry.tables import ReplicaRow
from everlearn.settings import Settings, load_settings

MODEL = "swapped"
TOPICS = ("bridges", "rivers", "music", "winter", "bread", "chess")
PROMPTS = tuple(f"Tell me about {topic}." for topic in TOPICS)
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OTHER_SYSTEM = "You are an old sailor who answers every question with a tale of the sea"
NEW_TOKENS = 24
PATIENCE_S = 120.0
CALM_S = 8.0
PARTS = {"engine": "", "gateway": "serve.gateway", "valkey": "valkey-server"}
"""What is killed, and a word of its command line; of the engines the one that serves."""


class Failed(Exception):
    """A request that was not answered whole; `kind` says how that showed."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


@dataclass(frozen=True)
class Failure:
    """One failed request, in `time.monotonic()` seconds."""

    began_at: float
    ended_at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and how long after it a request that had begun after the kill was answered."""

    part: str
    at: float
    back_s: float


@dataclass
class Seen:
    """What the clients saw in one phase. Times in seconds."""

    first_token_s: list[float] = field(default_factory=list[float])
    versions: set[str] = field(default_factory=set[str])
    failed: list[Failure] = field(default_factory=list[Failure])
    mixed: list[str] = field(default_factory=list[str])

    @property
    def p50_s(self) -> float:
        return median(self.first_token_s)

    @property
    def p99_s(self) -> float:
        return quantiles(self.first_token_s, n=100)[98]


@dataclass
class Result:
    """All phases, and from each `promote` to the first answer of the new version."""

    still: Seen
    swapping: Seen
    swap_s: list[float]
    killing: Seen
    kills: list[Kill]


Expected = dict[tuple[str, str], str]
"""(version, prompt) → the answer."""


async def measure(
    bundle: Path, clients: int, swaps: int, *, compare: bool = True, kills: bool = False, **environment: str
) -> Result:
    """Serve `bundle` and its twin from a home of their own, and swap them `swaps` times.

    With `kills` each part is then killed once; with `compare` the same clients then stream as long without swaps.
    """
    with tempfile.TemporaryDirectory(prefix="everlearn-swap-") as folder:
        settings = Settings(home=Path(folder) / "home")
        registry = Registry(settings)
        first = registry.add(bundle, MODEL)
        second = add_twin(registry, bundle)
        async with (
            server(settings.home, environment) as (url, process),
            aiohttp.ClientSession(url, headers=key(settings)) as session,
        ):
            expected = await learn(session, first.ref)
            registry.promote(second.ref)
            await served_by(session, second.ref)
            expected |= await learn(session, second.ref)
            swapping, swap_s = Seen(), list[float]()
            began_at = time.monotonic()
            async with streaming(url, clients, expected, swapping, session.headers):
                for turn in range(swaps):
                    ref = (first, second)[turn % 2].ref
                    started_at = time.monotonic()
                    registry.promote(ref)
                    swap_s.append(await served_by(session, ref) - started_at)
                    await settled(registry.database)
            took_s = time.monotonic() - began_at
            killing, killed = Seen(), list[Kill]()
            if kills:
                async with streaming(url, clients, expected, killing, session.headers):
                    for part in PARTS:
                        await asyncio.sleep(CALM_S)
                        killed.append(await kill(session, process, part, registry.database))
                    await asyncio.sleep(CALM_S)
            still = Seen()
            if compare:
                async with streaming(url, clients, expected, still, session.headers):
                    await asyncio.sleep(took_s)
        return Result(still, swapping, swap_s, killing, killed)


def key(settings: Settings) -> dict[str, str]:
    """The headers of a key whose limits are counted, and never met."""
    secret, _ = create_key(
        open_database(settings), "bench", requests_per_minute=10**6, tokens_per_minute=10**9
    )
    return {"authorization": f"Bearer {secret}"}


async def kill(
    session: aiohttp.ClientSession, server: subprocess.Popen[bytes], part: str, db: Engine
) -> Kill:
    """SIGKILL for one process of the server; waits until requests are answered again."""
    if part == "engine":
        with read(db) as connection:
            victim = psutil.Process(
                connection.scalar(select(ReplicaRow.pid).where(ReplicaRow.state == "ready"))
            )
    else:
        family = psutil.Process(server.pid).children(recursive=True)
        victim = next(process for process in family if PARTS[part] in " ".join(process.cmdline()))
    victim.kill()
    victim.wait()
    at = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(Failed, aiohttp.ClientError):
                await stream(session, PROMPTS[0])
                return Kill(part, at, time.monotonic() - at)


def add_twin(registry: Registry, bundle: Path) -> Version:
    """A version that answers differently: the same weights under another system prompt."""
    with registry.staging() as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
        template = staging / "chat_template.jinja"
        text = template.read_text()
        if SYSTEM not in text:
            raise SystemExit(f"{template.name} of {bundle} has no system prompt to change")
        template.chmod(0o644)
        template.write_text(text.replace(SYSTEM, OTHER_SYSTEM))
        made = json.loads((staging / "bundle.json").read_text())
        (staging / "bundle.json").unlink()
        kept = {
            key: made[key] for key in ("format", "task", "architecture", "parameters", "recipe", "metrics")
        }
        write_bundle(staging, name=MODEL, **kept)
        return registry.add(staging, MODEL)


@asynccontextmanager
async def server(
    home: Path, environment: dict[str, str]
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running `everlearn serve` with two gateways; gives its URL and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "EVERLEARN_HOME": str(home), "EVERLEARN_SERVE__PORT": str(port), "EVERLEARN_CONTINUAL__WORKER": "on",
        "EVERLEARN_ONNX__BATCH_INVARIANT": "true", "EVERLEARN_SERVE__GATEWAYS": "2",
    }  # fmt: skip
    log = (home.parent / "serve.log").open("wb")
    command = [sys.executable, "-m", "everlearn", "serve", MODEL]
    process = subprocess.Popen(  # noqa: ASYNC220
        command, env=os.environ | settings | environment, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE_S):
            while not await is_ready(session):
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                await asyncio.sleep(0.2)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def is_ready(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def learn(session: aiohttp.ClientSession, ref: str) -> Expected:
    """What `ref` answers, which must be the version that serves now."""
    expected = Expected()
    for prompt in PROMPTS:
        version, text, _ = await stream(session, prompt)
        if version != ref:
            raise RuntimeError(f"{version} answered instead of {ref}")
        expected[version, prompt] = text
    return expected


async def served_by(session: aiohttp.ClientSession, ref: str) -> float:
    """Waits until an answer comes from `ref`; when its first byte came, in `time.monotonic()` seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            async with session.post("/v1/chat/completions", json=body) as response:
                came_at = time.monotonic()
                await response.read()
                if response.headers.get("x-everlearn-version") == ref:
                    return came_at
            await asyncio.sleep(0.1)


async def settled(db: Engine) -> None:
    """Waits until no engine is on its way in or out."""
    moving = select(func.count()).where(ReplicaRow.state.in_(("starting", "draining")))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with read(db) as connection:
                if not connection.scalar(moving):
                    return
            await asyncio.sleep(0.1)


async def stream(session: aiohttp.ClientSession, prompt: str) -> tuple[str, str, float]:
    """The version that answered, its text, and the seconds to the first piece. Raises Failed, ClientError."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        "max_tokens": NEW_TOKENS, "stream": True,
    }  # fmt: skip
    started_at, first_s, text, done = time.perf_counter(), 0.0, "", False
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise Failed(f"status {response.status}", await response.text())
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise Failed("error event", str(event["error"]))
                first_s = first_s or time.perf_counter() - started_at
                text += event["choices"][0]["delta"].get("content") or ""
            done = done or line.startswith(b"data: [DONE]")
        if not done:
            raise Failed("ended without [DONE]", text)
        return response.headers["x-everlearn-version"], text, first_s


@asynccontextmanager
async def streaming(
    url: str, clients: int, expected: Expected, seen: Seen, headers: Mapping[str, str]
) -> AsyncIterator[None]:
    """`clients` that stream one answer after the other, until the block ends; then each ends its last answer."""
    stop = asyncio.Event()

    async def ask_on(number: int) -> None:
        async with aiohttp.ClientSession(url, headers=headers) as session:
            while not stop.is_set():
                number += 1
                prompt = PROMPTS[number % len(PROMPTS)]
                began_at = time.monotonic()
                try:
                    version, text, first_s = await stream(session, prompt)
                except Failed as error:
                    seen.failed.append(Failure(began_at, time.monotonic(), error.kind, str(error)))
                    continue
                except aiohttp.ClientError as error:
                    seen.failed.append(Failure(began_at, time.monotonic(), "connection broke", repr(error)))
                    continue
                seen.first_token_s.append(first_s)
                seen.versions.add(version)
                if text != expected[version, prompt]:
                    seen.mixed.append(f"{version} answered {prompt!r} with {text!r}")

    asking = [asyncio.create_task(ask_on(number)) for number in range(clients)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*asking)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.serve.swap", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="an ONNX chat version in EVERLEARN_HOME")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--kills", action="store_true", help="then kill the engine, a gateway and Valkey")
    arguments = parser.parse_args()
    registry = Registry(load_settings())
    bundle = registry.path(registry.resolve(arguments.model))
    result = asyncio.run(measure(bundle, arguments.clients, arguments.swaps, kills=arguments.kills))
    still, swapping = result.still, result.swapping
    print(f"{arguments.clients} clients, {len(result.swap_s)} swaps")
    print(f"{'':24}{'without swaps':>14}{'with swaps':>14}")
    for name, value in (
        ("answers", lambda seen: len(seen.first_token_s)),
        ("failed requests", lambda seen: len(seen.failed)),
        ("mixed answers", lambda seen: len(seen.mixed)),
        ("first token p50, ms", lambda seen: round(seen.p50_s * 1000)),
        ("first token p99, ms", lambda seen: round(seen.p99_s * 1000)),
    ):
        print(f"{name:24}{value(still):14}{value(swapping):14}")
    print(f"p99 to first token, with swaps ÷ without: {swapping.p99_s / still.p99_s:.2f}")
    print(f"promote to first answer, s: median {median(result.swap_s):.1f}, worst {max(result.swap_s):.1f}")
    faults = [failure.text for failure in swapping.failed + still.failed] + swapping.mixed + still.mixed
    faults += report_kills(result)
    for fault in faults[:10]:
        print(fault, file=sys.stderr)
    if faults:
        raise SystemExit(1)


def report_kills(result: Result) -> list[str]:
    """Print what each kill did; returns what must not have happened."""
    seen, unexplained = result.killing, list(result.killing.failed)
    for kill in result.kills:
        hit = [f for f in unexplained if f.began_at <= kill.at <= f.ended_at]
        unexplained = [f for f in unexplained if f not in hit]
        kinds = ", ".join(f"{count} ({kind})" for kind, count in Counter(f.kind for f in hit).items())
        print(
            f"{kill.part} killed: {kinds or 'none'} of the requests under way failed; "
            f"the first later one was answered after {kill.back_s:.1f} s"
        )
    if result.kills:
        print(f"{len(seen.first_token_s)} answers beside the kills; {len(unexplained)} other failures")
    return [failure.text for failure in unexplained] + seen.mixed


if __name__ == "__main__":
    main()
