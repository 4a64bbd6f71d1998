"""Which of four engines takes a request: `python -m benchmarks.serve.routing`.

Clients ask about one of several long texts (as system prompts, documents or conversations are): requests about the
same text begin alike. The same requests, in the same order, go through the gateway to four ONNX engines, which keep
what they have read in their slots, first with the gateway choosing in turn (round robin), then as it does by itself.
Both start with fresh engines. Measured: the time to the first token, and the answers per second.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import mean, median, quantiles

import aiohttp

from benchmarks.serve.gateway import free_port
from benchmarks.serve.streams import Timeline, prompt_of, stream
from everlearn.registry.database import open_database
from everlearn.registry.registry import Registry
from everlearn.settings import Settings, load_settings
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.router import Router
from serve.replicas import announce, heartbeat, unix_url

ENGINES = 4
SLOTS = 4
PATIENCE_S = 120.0


class RoundRobin(Router):
    """The peer: each request to the next engine."""

    turn = count()

    def choose(self, work: object, tried: Replica | None = None) -> Replica:
        replicas = sorted(self._replicas.values(), key=lambda replica: replica.row.id)
        return replicas[next(self.turn) % len(replicas)]


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[None]:
    child = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


@contextmanager
def engines(home: Path, bundle: Path, context: int) -> Iterator[None]:
    """Four engines of one thread each, and their rows kept fresh."""
    db, over = open_database(Settings(home=home)), threading.Event()
    limits = {"THREADS": 1, "SLOTS": SLOTS, "CONTEXT": context}
    environment = {f"EVERLEARN_ONNX__{name}": str(value) for name, value in limits.items()}
    with ExitStack() as stack:
        for number in range(ENGINES):
            socket = home / f"{number}.sock"
            command = [
                "-m",
                "serve.engines.onnx",
                "--bundle",
                str(bundle),
                "--model",
                "m",
                "--uds",
                str(socket),
            ]
            stack.enter_context(process([sys.executable, *command], **environment))
            announce(
                db, id=f"engine-{number}", model="m", version=1, digest="0" * 64, kind="onnx", task="generate",
                url=unix_url(socket), pid=os.getpid(),
            )  # fmt: skip

        def beat() -> None:
            while not over.wait(1):
                for number in range(ENGINES):
                    if (home / f"{number}.sock").exists():
                        heartbeat(db, f"engine-{number}")

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


async def until_all_are_there(url: str) -> None:
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with session.get("/metrics") as response:
                    if f'everlearn_replicas{{model="m",state="ready"}} {ENGINES}' in await response.text():
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


async def ask(url: str, prompts: list[str], clients: int) -> tuple[list[Timeline], float]:
    """All prompts, `clients` at once; the answers, and the seconds they took together."""
    waiting, answers = iter(prompts), list[Timeline]()

    async def client() -> None:
        async with aiohttp.ClientSession() as session:
            for prompt in waiting:
                answers.append(Timeline())
                body = {"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0}
                await stream(session, url, body, answers[-1])

    began_at = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, time.perf_counter() - began_at


def measure(name: str, bundle: Path, prompts: list[str], arguments: argparse.Namespace) -> float:
    """Prints a row; returns the mean time to the first token."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="rt") as folder:
        home = Path(folder)
        module = (
            ["-m", "serve.gateway"]
            if name == "everlearn"
            else ["-m", "benchmarks.serve.routing", "--gateway"]
        )
        settings = {"EVERLEARN_HOME": folder, "EVERLEARN_SERVE__PORT": str(port)}
        with engines(home, bundle, arguments.tokens + 256), process([sys.executable, *module], **settings):
            asyncio.run(until_all_are_there(url))
            answers, took_s = asyncio.run(ask(url, prompts, arguments.clients))
    firsts = [answer.first_token_s * 1000 for answer in answers]
    p95 = quantiles(firsts, n=20)[18]
    print(
        f"| {name} | {mean(firsts):.0f} | {median(firsts):.0f} | {p95:.0f} | {len(answers) / took_s:.2f} |",
        flush=True,
    )
    return mean(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.serve.routing", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="an ONNX chat version in EVERLEARN_HOME")
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512, help="of each text")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--gateway", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gateway:
        import serve.gateway.state
        from serve.gateway.__main__ import prepare

        serve.gateway.state.Router = RoundRobin  # type: ignore[misc]
        raise SystemExit(prepare(parent_pipe=False, fd=None, uds=None)())
    registry = Registry(load_settings())
    bundle = registry.path(registry.resolve(arguments.model))
    random.seed(1)
    texts = [prompt_of(arguments.tokens) for _ in range(arguments.texts)]
    prompts = [random.choice(texts) + prompt_of(16) for _ in range(arguments.requests)]
    print(
        f"{ENGINES} engines of one thread and {SLOTS} slots, {arguments.clients} clients, "
        f"{arguments.requests} requests about {arguments.texts} texts of {arguments.tokens} tokens\n"
    )
    print(
        "| gateway chooses | first token, mean ms | median ms | p95 ms | answers/s |\n|---|---|---|---|---|"
    )
    in_turn = measure("in turn", bundle, prompts, arguments)
    ours = measure("everlearn", bundle, prompts, arguments)
    print(f"\nmean time to the first token, in turn ÷ everlearn: {in_turn / ours:.2f}")


if __name__ == "__main__":
    main()
