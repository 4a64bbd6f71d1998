"""Requests to any OpenAI server as a client sees them: when each piece of text arrived, and the rates of that."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Each is one token of SmolLM2's vocabulary with a space before it, so that words are tokens.
TEXT = (
    "the cat dog house tree river stone bird blue walk people time year day man world life hand part child eye"
    " woman place work week case point company number group problem fact money water book night home side car"
    " city head school story game end law power paper music light food land north south summer winter green"
    " white black red road field moon sun sea"
)
WORDS = TEXT.split()


def prompt_of(tokens: int) -> str:
    """A prompt of that many tokens that shares no beginning with another, so that no prefix cache helps."""
    return "".join(f" {random.choice(WORDS)}" for _ in range(tokens))


@dataclass
class Timeline:
    """One streamed answer. Times are `time.perf_counter()` seconds."""

    started_at: float = 0.0
    arrivals_at: list[float] = field(default_factory=list[float])
    tokens: int = 0
    prompt_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def first_token_s(self) -> float:
        return self.arrivals_at[0] - self.started_at


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any], timeline: Timeline) -> None:
    """POST a completion and note in `timeline` what arrives when; raises if the stream is not whole."""
    whole = body | {"stream": True, "stream_options": {"include_usage": True}}
    timeline.started_at = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=whole) as response:
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                note(timeline, json.loads(line[6:]))


def note(timeline: Timeline, event: dict[str, Any]) -> None:
    """Add one event that arrived just now."""
    if "error" in event:
        raise RuntimeError(f"the stream ended with {event['error']}")
    if any(choice.get("text") for choice in event["choices"]):
        timeline.arrivals_at.append(time.perf_counter())
    if usage := event.get("usage"):
        timeline.tokens, timeline.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    timeline.timings = event.get("timings") or timeline.timings


def client() -> aiohttp.ClientSession:
    """A session without a limit on connections; measurements may take minutes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    )


async def together(url: str, bodies: Sequence[dict[str, Any]]) -> list[Timeline]:
    """Stream all of them at once."""
    timelines = [Timeline() for _ in bodies]
    async with client() as session, asyncio.TaskGroup() as group:
        for body, timeline in zip(bodies, timelines, strict=True):
            group.create_task(stream(session, url, body, timeline))
    return timelines


async def joining(url: str, running: Sequence[dict[str, Any]], body: dict[str, Any]) -> Timeline:
    """Stream `body` once all of `running` are decoding, then hang up on those."""
    timelines = [Timeline() for _ in running]
    joined = Timeline()
    async with client() as session:
        others = [
            asyncio.create_task(stream(session, url, other, timeline))
            for other, timeline in zip(running, timelines, strict=True)
        ]
        while not all(timeline.arrivals_at for timeline in timelines) and not any(
            task.done() for task in others
        ):
            await asyncio.sleep(0.005)
        await stream(session, url, body, joined)
        if any(task.done() for task in others):
            raise RuntimeError(f"{url}: a stream was over before the request had joined all of them")
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return joined


def decode_rate(timelines: Sequence[Timeline]) -> float:
    """Tokens/s over the span in which every stream was decoding: after the last first token, before the first end."""
    begin = max(timeline.arrivals_at[0] for timeline in timelines)
    end = min(timeline.arrivals_at[-1] for timeline in timelines)
    if end <= begin:
        return 0.0
    return sum(
        sum(begin < at <= end for at in timeline.arrivals_at) * timeline.tokens / len(timeline.arrivals_at)
        for timeline in timelines
    ) / (end - begin)


def wall_rate(timelines: Sequence[Timeline]) -> float:
    """Tokens/s from the first request to the last token, prompts included."""
    begin = min(timeline.started_at for timeline in timelines)
    end = max(timeline.arrivals_at[-1] for timeline in timelines)
    return sum(timeline.tokens for timeline in timelines) / (end - begin)
