"""A steady stream while hostile requests are thrown at the server: `python -m benchmarks.serve.attacks --seconds 300`.

A process of its own streams completions without a pause and notes when each piece of text arrives: first on a quiet
server, then while others send what is too large, too deep, too slow, broken or left. Each attack must get an answer
that blames the client (never 5xx, except 503 where a limit is met), no process of the server may be replaced, and
memory must be flat. The steady stream's gaps are given as median, p99 and largest, quiet and attacked.

An attacker waits for the answer to one attack before the next; `--attackers` says how many do so at once. They have
the lowest priority, since elsewhere they would not share the server's cores.
"""

import argparse
import asyncio
import base64
import itertools
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks.serve.soak import children_of
from benchmarks.serve.swap import MODEL, key, server
from everlearn.registry.registry import Registry
from everlearn.settings import Settings, load_settings

QUIET_S = 40.0
SETTLE_S = 15.0
WARM_UP_SHARE = 0.3
"""Memory is compared with what it is after this share of the attacks: by then each has met the others."""
STEADY_TOKENS = 1500
ALLOWED = (429, 503)
"""Statuses of 429 and above that are no flaw: a limit is met, or the request was turned away unread."""
BIG = 6_000_000
HALF_OPEN_S = 8.0
console = Console(stderr=True, highlight=False)


def steady(url: str, headers: dict[str, str], seconds: float, gaps: Any) -> None:
    """Stream completions for `seconds`, and put the gaps between pieces of text (in seconds) into the queue."""

    async def run() -> list[float]:
        found: list[float] = []
        end_at = time.monotonic() + seconds
        body = {
            "model": MODEL, "prompt": "Once upon a time", "stream": True, "max_tokens": STEADY_TOKENS,
            "temperature": 0.8, "logit_bias": {"0": -100, "2": -100},
        }  # fmt: skip
        async with aiohttp.ClientSession(url, headers=headers) as session:
            while time.monotonic() < end_at:
                last = None
                async with session.post("/v1/completions", json=body) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        if b'"error"' in line:
                            raise RuntimeError(f"the steady stream broke: {line[:300]!r}")
                        if line.startswith(b"data: {") and b'"text"' in line:
                            now = time.perf_counter()
                            if last is not None:
                                found.append(now - last)
                            last = now
                        if time.monotonic() > end_at:
                            return found
        return found

    try:
        gaps.put(asyncio.run(run()))
    except Exception as error:  # noqa: BLE001 - told to the parent, which ends the run
        gaps.put(repr(error))


@dataclass
class Target:
    """The server under attack."""

    url: str
    headers: dict[str, str]
    session: aiohttp.ClientSession
    statuses: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def bearer(self) -> bytes:
        return self.headers["authorization"].encode()

    async def post(self, path: str, body: bytes) -> str:
        headers = {"content-type": "application/json"}
        async with self.session.post(path, data=body, headers=headers) as response:
            await response.read()
            return str(response.status)

    async def raw(self, data: bytes, pieces: int = 1, pause_s: float = 0.0) -> str:
        """Bytes on a connection of their own; the status line's code, and whether a second answer came."""
        data = data.replace(b"host: localhost", b"host: localhost\r\nauthorization: " + self.bearer, 1)
        where = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            size = -(-len(data) // pieces)
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await writer.drain()
                await asyncio.sleep(pause_s)
            answer = await asyncio.wait_for(reader.read(65536), HALF_OPEN_S)
            code = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/") else "closed"
            return code if answer.count(b"HTTP/1.1 ") < 2 else f"{code} and a second answer"
        except TimeoutError:
            return "still open"
        except ConnectionError:
            return "closed"
        finally:
            writer.close()


Attack = Callable[[Target], Awaitable[str]]


def chat(content: Any, **options: Any) -> dict[str, Any]:
    message = {"role": "user", "content": content}
    return {"model": MODEL, "messages": [message], "max_tokens": 4, **options}


def posts(path: str, body: Any) -> Attack:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda target: target.post(path, data)


def large_texts() -> dict[str, Attack]:
    """Texts beyond any context, of kinds that tokenizers treat differently."""
    noise = base64.b64encode(random.Random(0).randbytes(BIG)).decode()
    texts = {
        "digits": "1" * BIG,
        "spaces": " " * BIG,
        "one letter": "a" * BIG,
        "emoji": "🙂" * (BIG // 12),
        "base64": noise[:BIG],
        "newlines": "\n" * (BIG // 2),
        "Chinese": "学而时习之" * (BIG // 30),
        "words": "the cat sat " * (BIG // 12),
        "accents to compose": "e\u0301" * (BIG // 8),
    }
    found = {f"6 MB of {name}": posts("/v1/chat/completions", chat(text)) for name, text in texts.items()}
    half = "1" * 1_500_000
    return found | {
        "1.5 MB of digits, tokenize": posts("/tokenize", {"model": MODEL, "prompt": half}),
        "1.5 MB of digits, messages": posts(
            "/v1/messages",
            {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": half}]},
        ),
        "1.5 MB of digits, completions": posts(
            "/v1/completions", {"model": MODEL, "prompt": half, "max_tokens": 4}
        ),
        "1.5 MB of digits, responses": posts("/v1/responses", {"model": MODEL, "input": half}),
        "2,000 prompts": posts("/v1/completions", {"model": MODEL, "prompt": ["9" * 2000] * 2000}),
        "a million token ids": posts("/detokenize", {"model": MODEL, "tokens": [9] * 1_000_000}),
        "a prompt of 6,000 digits": posts("/v1/chat/completions", chat("7" * 6000)),
    }


def deep_bodies() -> dict[str, Attack]:
    """JSON that is deep, wide, or holds what parsers stumble over."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    history = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "y"},
    ]
    surrogate = json.dumps(chat("x")).replace('"x"', '"\\ud83d"').encode()
    return {
        "deep JSON": posts("/v1/chat/completions", b'{"model":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        "a million keys": posts("/v1/chat/completions", {str(n): n for n in range(500_000)}),
        "100,000 messages": posts(
            "/v1/chat/completions", chat("x") | {"messages": [{"role": "user", "content": "x"}] * 100_000}
        ),
        "deep arguments in history": posts("/v1/chat/completions", chat("x") | {"messages": history}),
        "half of a surrogate pair": posts("/v1/chat/completions", surrogate),
        "escapes": posts("/v1/chat/completions", b'{"model":"' + b"\\u0041" * 1_200_000 + b'"}'),
        "a name of 1 MB": posts("/v1/chat/completions", chat("x") | {"model": "m" * 1_000_000}),
        "numbers without end": posts("/v1/chat/completions", chat("x", seed=10**300)),
    }


def hostile_grammars() -> dict[str, Attack]:
    """Schemas and grammars that are expensive to compile or to follow."""

    def lark(source: str) -> dict[str, Any]:
        return chat("x", response_format={"type": "grammar", "grammar": source}) | {"max_tokens": 64}

    def schema(value: Any) -> dict[str, Any]:
        return chat(
            "x", response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": value}}
        )

    long_rule = "start: " + " | ".join(f'"{n}" "{n}"' for n in range(5000))
    return {
        "an ambiguous grammar": posts("/v1/chat/completions", lark('start: e\ne: e e | e e e | "a"? | e? e')),
        "a long grammar": posts("/v1/chat/completions", lark(long_rule[:64_000])),
        "a regex that explodes": posts(
            "/v1/chat/completions", schema({"type": "string", "pattern": "(a|a?)+(b{1,900}c?){1,900}$"})
        ),
        "a bound beyond 64 bits": posts(
            "/v1/chat/completions", schema({"type": "integer", "maximum": 2**64})
        ),
        "a schema of 20,000 choices": posts(
            "/v1/chat/completions", schema({"enum": [f"value {n}" for n in range(5000)]})
        ),
        "a schema that nests itself": posts(
            "/v1/chat/completions",
            schema({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
        ),
    }


def slow_and_broken() -> dict[str, Attack]:
    """What never ends, ends too early, or is no HTTP."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    inner = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"

    async def left(target: Target) -> str:
        body = chat("Tell me a long story.", stream=True) | {"max_tokens": 500}
        async with target.session.post("/v1/chat/completions", json=body) as response:
            await response.content.readline()
            response.close()
        return "left"

    async def hung_up(target: Target) -> str:
        body = chat("word " * 700) | {"max_tokens": 500}
        with_limit = asyncio.wait_for(target.post("/v1/chat/completions", json.dumps(body).encode()), 0.3)
        try:
            return await with_limit
        except TimeoutError:
            return "left"

    async def idle(target: Target) -> str:
        where = urlsplit(target.url)
        writers = [(await asyncio.open_connection(where.hostname, where.port))[1] for _ in range(50)]
        await asyncio.sleep(1)
        for writer in writers:
            writer.close()
        return "left"

    async def foreign(target: Target) -> str:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", b"x" * 4_000_000, filename="x.jsonl")
        headers = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        async with target.session.post("/v1/files", data=form, headers=headers) as response:
            return str(response.status)

    return {
        "a stream that is left": left,
        "an answer that nobody waits for": hung_up,
        "50 idle connections": idle,
        "an upload from another site": foreign,
        "headers without end": lambda target: target.raw(b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 200_000),
        "no HTTP at all": lambda target: target.raw(os.urandom(4096)),
        "a body behind an upgrade": lambda target: target.raw(
            head + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n" % len(inner) + inner,
            pieces=2,
            pause_s=0.2,
        ),
        "a body that trickles": lambda target: target.raw(
            head + b"content-length: 1000000\r\n\r\n" + b'{"model"' * 4, pieces=40, pause_s=0.1
        ),
        "tiny chunks": lambda target: target.raw(
            head + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * 30_000 + b"0\r\n\r\n"
        ),
        "10,000 ranges": lambda target: target.raw(
            b"GET /v1/files/file-x/content HTTP/1.1\r\nhost: localhost\r\nrange: bytes="
            + b",".join(b"%d-" % n for n in range(9000))
            + b"\r\nconnection: close\r\n\r\n"
        ),
    }


ATTACKS = {**large_texts(), **deep_bodies(), **hostile_grammars(), **slow_and_broken()}


async def attack(
    target: Target, attacks: Iterator[tuple[str, Attack]], end_at: float, flaws: list[str]
) -> None:
    """One attacker: the next attack as soon as the last is answered."""
    for name, run in attacks:
        if time.monotonic() > end_at:
            return
        try:
            outcome = await asyncio.wait_for(run(target), 120)
        except TimeoutError:
            outcome = "no answer in 120 s"
            flaws.append(f"{name}: {outcome}")
        except aiohttp.ClientError as error:
            outcome = type(error).__name__
        target.statuses.setdefault(name, Counter())[outcome] += 1
        status = int(outcome) if outcome.isdigit() else 0
        if (status >= 500 and status not in ALLOWED) or "second answer" in outcome:
            flaws.append(f"{name}: {outcome}")


def resident(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """Megabytes of each process of the server."""
    return {name: process.memory_info().rss / 1e6 for name, process in processes.items()}


def watch_steady(url: str, headers: dict[str, str], seconds: float) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    gaps = context.Queue()
    process = context.Process(target=steady, args=(url, headers, seconds, gaps))
    process.start()
    return process, gaps


async def gaps_of(watched: tuple[Any, Any]) -> np.ndarray:
    """Milliseconds between pieces of the steady stream."""
    process, queue = watched
    found = await asyncio.to_thread(queue.get)
    await asyncio.to_thread(process.join)
    if isinstance(found, str):
        raise SystemExit(f"the steady stream failed: {found}")
    return 1e3 * np.array(found)


async def measure(bundle: Path, seconds: float, attackers: int) -> list[str]:
    """What went wrong, in words; the figures are printed."""
    with tempfile.TemporaryDirectory(prefix="everlearn-attacks-") as folder:
        settings = Settings(home=Path(folder) / "home")
        Registry(settings).add(bundle, MODEL)
        headers = key(settings)
        environment = {"EVERLEARN_SERVE__GATEWAYS": "1", "EVERLEARN_ONNX__BATCH_INVARIANT": "false"}
        async with (
            server(settings.home, environment) as (url, process),
            aiohttp.ClientSession(url, headers=headers, timeout=aiohttp.ClientTimeout(130)) as session,
        ):
            target = Target(url, headers, session)
            flaws: list[str] = []
            console.print("each attack once, so that memory reaches its working size")
            await attack(target, iter(ATTACKS.items()), math.inf, [])
            await asyncio.sleep(SETTLE_S)
            target.statuses.clear()
            quiet = await gaps_of(watch_steady(url, headers, QUIET_S))
            processes = children_of(process.pid)
            before: dict[str, float] = {}
            watched = watch_steady(url, headers, seconds)
            os.setpriority(os.PRIO_PROCESS, 0, 19)  # on a network, attackers have machines of their own
            end_at = time.monotonic() + seconds
            order = itertools.cycle(random.Random(0).sample(list(ATTACKS.items()), len(ATTACKS)))
            throwing = [asyncio.create_task(attack(target, order, end_at, flaws)) for _ in range(attackers)]
            with Progress() as progress:
                task = progress.add_task("attacks", total=seconds)
                while time.monotonic() < end_at:
                    await asyncio.sleep(0.5)
                    done_s = seconds - (end_at - time.monotonic())
                    progress.update(task, completed=done_s)
                    if not before and done_s > WARM_UP_SHARE * seconds:
                        before = resident(children_of(process.pid))
            attacked = await gaps_of(watched)
            await asyncio.gather(*throwing)
            await asyncio.sleep(SETTLE_S)
            return report(target, quiet, attacked, before, processes, children_of(process.pid), flaws)


def report(
    target: Target, quiet: np.ndarray, attacked: np.ndarray, before: dict[str, float],
    processes: dict[str, psutil.Process], later: dict[str, psutil.Process], flaws: list[str],
) -> list[str]:  # fmt: skip
    """Print the figures; return what is not as it must be."""
    for name, statuses in sorted(target.statuses.items()):
        print(f"  {name:36} " + ", ".join(f"{status} x {count}" for status, count in statuses.items()))
    print(
        f"{sum(sum(each.values()) for each in target.statuses.values())} attacks of {len(target.statuses)} kinds"
    )
    for title, gaps in (("quiet", quiet), ("attacked", attacked)):
        p50, p99 = np.percentile(gaps, [50, 99])
        print(
            f"steady stream, {title:8}: {len(gaps)} gaps, median {p50:.1f} ms, p99 {p99:.1f}, most {gaps.max():.1f}"
        )
    factor = float(np.percentile(attacked, 99) / np.percentile(quiet, 99))
    print(f"p99 gap: {factor:.2f} times the quiet one")
    if factor >= 3:
        flaws.append(f"the p99 gap is {factor:.2f} times the quiet one")
    for name, process in processes.items():
        if later.get(name) is None or later[name].pid != process.pid:
            flaws.append(f"{name} was restarted")
    for name, now in resident(later).items():
        grown = now - before.get(name, now)
        print(f"{name}: {now:.0f} MB ({grown:+.1f})")
        if grown > 0.05 * before.get(name, now) + 20:
            flaws.append(f"{name} grew by {grown:.0f} MB")
    return sorted(set(flaws))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serve.attacks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", nargs="?", default="smollm2", help="an ONNX chat version in EVERLEARN_HOME")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--attackers", type=int, default=2)
    arguments = parser.parse_args()
    registry = Registry(load_settings())
    bundle = registry.path(registry.resolve(arguments.model))
    flaws = asyncio.run(measure(bundle, arguments.seconds, arguments.attackers))
    print("\n".join(flaws) or "nothing broke, nothing grew, nobody waited")
    sys.exit(bool(flaws))


if __name__ == "__main__":
    main()
