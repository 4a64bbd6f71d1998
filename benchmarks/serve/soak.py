"""Clients that stream, leave and time out at random: `python -m benchmarks.serve.soak URL --clients 200 --seconds 300`.

Every answer is greedy, so each client knows what it must read; one wrong character fails the run. At the end the
metrics of gateway and engine must be back at zero, and their memory, sockets and tasks where they were.
Start the server with EVERLEARN_ONNX__BATCH_INVARIANT=true: only then is a lone request computed by the same kernel
as a full batch.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

TOPICS = ["bridges", "rivers", "music", "winter", "bread", "chess", "rockets", "glass", "sleep", "Rome"]
PROMPTS = [f"Tell me {number} things about {topic}." for number in range(2, 6) for topic in TOPICS]
NEW_TOKENS = 40
SETTLE_S = 15.0
GAUGES = ("everlearn_requests_in_flight", "everlearn_requests_waiting")
TASKS = "everlearn_tasks"


@dataclass
class Footprint:
    """What the processes of a server hold. Memory in bytes."""

    resident_bytes: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    gauges: dict[str, float]
    tasks: float


@dataclass
class Soak:
    """One run's state."""

    url: str
    headers: dict[str, str]
    expected: dict[str, str] = field(default_factory=dict[str, str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])

    def body(self, prompt: str, stream: bool) -> dict[str, Any]:
        message = {"role": "user", "content": prompt}
        return {
            "model": "smollm2", "messages": [message], "temperature": 0, "max_tokens": NEW_TOKENS, "stream": stream
        }  # fmt: skip

    async def learn(self) -> None:
        """What each prompt is answered, asked one at a time."""
        async with aiohttp.ClientSession(headers=self.headers) as session:
            for prompt in PROMPTS:
                self.expected[prompt] = await self.whole(session, prompt)

    async def whole(self, session: aiohttp.ClientSession, prompt: str) -> str:
        body = self.body(prompt, stream=False)
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            answer = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {answer}")
            return answer["choices"][0]["message"]["content"]

    async def client(self, end_at: float, chance: random.Random) -> None:
        """Ask until the time is over, each time with another way to behave."""
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(headers=self.headers, connector=connector) as session:
            while time.monotonic() < end_at:
                prompt = chance.choice(PROMPTS)
                leave_after = chance.choice([None, 0, 1, chance.randint(2, NEW_TOKENS)])
                patience_s = chance.choice([None, None, chance.uniform(0.05, 3)])
                try:
                    async with asyncio.timeout(patience_s):
                        if chance.random() < 0.2:
                            self.check(prompt, await self.whole(session, prompt), whole=True)
                            self.outcomes["whole answer"] += 1
                        else:
                            await self.stream(session, prompt, leave_after)
                except TimeoutError:
                    self.outcomes["timed out"] += 1
                except (aiohttp.ClientError, RuntimeError) as error:
                    self.wrong.append(repr(error))

    async def stream(self, session: aiohttp.ClientSession, prompt: str, leave_after: int | None) -> None:
        text, pieces, done = "", 0, False
        body = self.body(prompt, stream=True)
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            async for line in response.content:
                if leave_after is not None and pieces >= leave_after:
                    response.close()
                    break
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event))
                text += event["choices"][0]["delta"].get("content") or ""
                pieces += 1
        if not done and leave_after is None:
            self.wrong.append(f"a stream for {prompt!r} ended without [DONE]")
        self.check(prompt, text, whole=done)
        self.outcomes["streamed" if done else "left"] += 1

    def check(self, prompt: str, text: str, *, whole: bool) -> None:
        expected = self.expected[prompt]
        if text != expected if whole else not expected.startswith(text):
            self.wrong.append(f"{prompt!r} was answered {text!r} instead of {expected!r}")


def children_of(pid: int) -> dict[str, psutil.Process]:
    """The gateway and the engines under a supervisor, by the last part of their module's name."""
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process(pid).children():
        words = child.cmdline()
        if "-m" in words:
            name = words[words.index("-m") + 1]
            model = words[words.index("--model") + 1] if "--model" in words else ""
            found[f"{name} {model}".strip()] = child
    return found


async def footprint(soak: Soak, processes: dict[str, psutil.Process]) -> Footprint:
    """What the server holds now."""
    async with (
        aiohttp.ClientSession(headers=soak.headers) as session,
        session.get(f"{soak.url}/metrics") as response,
    ):
        text = await response.text()
    return Footprint(
        {name: process.memory_info().rss for name, process in processes.items()},
        {name: process.num_fds() for name, process in processes.items()},
        {name: process.num_threads() for name, process in processes.items()},
        dict(metrics(text, GAUGES)),
        dict(metrics(text, (TASKS,)))[TASKS],
    )


def metrics(text: str, names: tuple[str, ...]) -> Iterable[tuple[str, float]]:
    """Samples whose name begins with one of `names`."""
    for line in text.splitlines():
        if line.startswith(names):
            name, value = line.rsplit(" ", 1)
            yield name, float(value)


async def run(url: str, clients: int, seconds: float, supervisor_pid: int, key: str | None) -> list[str]:
    """Soak the server; what went wrong, in words."""
    soak = Soak(url, {"authorization": f"Bearer {key}"} if key else {})
    processes = children_of(supervisor_pid)
    await soak.learn()
    chance = random.Random(0)
    await crowd(soak, clients, min(20.0, seconds / 5), chance)  # memory reaches its working size
    await asyncio.sleep(SETTLE_S)
    before = await footprint(soak, processes)
    await crowd(soak, clients, seconds, chance)
    await asyncio.sleep(SETTLE_S)
    after = await footprint(soak, processes)
    return report(soak, before, after)


async def crowd(soak: Soak, clients: int, seconds: float, chance: random.Random) -> None:
    end_at = time.monotonic() + seconds
    tasks = [soak.client(end_at, random.Random(chance.random())) for _ in range(clients)]
    await asyncio.gather(*tasks)


def report(soak: Soak, before: Footprint, after: Footprint) -> list[str]:
    """Print the figures; return what is not as it must be."""
    flaws = [f"wrong: {flaw}" for flaw in soak.wrong[:10]]
    print("requests:", ", ".join(f"{count} {name}" for name, count in sorted(soak.outcomes.items())))
    print(f"wrong or failed: {len(soak.wrong)}")
    for name, resident in after.resident_bytes.items():
        grown = resident - before.resident_bytes[name]
        print(
            f"{name}: {resident / 1e6:.0f} MB ({grown / 1e6:+.1f}), {after.descriptors[name]} descriptors "
            f"({after.descriptors[name] - before.descriptors[name]:+d}), {after.threads[name]} threads"
        )
        if grown > 0.05 * before.resident_bytes[name] + 20e6:
            flaws.append(f"{name} grew by {grown / 1e6:.0f} MB")
        if after.descriptors[name] > before.descriptors[name] + 8:
            flaws.append(
                f"{name} holds {after.descriptors[name] - before.descriptors[name]} more descriptors"
            )
    print(f"gateway tasks: {after.tasks:.0f} ({after.tasks - before.tasks:+.0f})")
    if after.tasks > before.tasks + 4:
        flaws.append(f"{after.tasks - before.tasks:.0f} tasks more than before")
    flaws += [f"{name} is {value}, not 0" for name, value in after.gauges.items() if value]
    return flaws


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--supervisor", type=int, required=True, help="process id of `everlearn serve`")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--key")
    arguments = parser.parse_args()
    flaws = asyncio.run(
        run(arguments.url, arguments.clients, arguments.seconds, arguments.supervisor, arguments.key)
    )
    print("\n".join(flaws) or "nothing leaked, no wrong byte")
    sys.exit(bool(flaws))


if __name__ == "__main__":
    main()
