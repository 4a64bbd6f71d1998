"""What a seed costs: `python -m benchmarks.serve.seeded [MODEL]`, tokens/s with and without one, in the same run.

A seeded answer has the same text in any company; for that it always runs in the kernel of batches. One engine answers
over HTTP: one stream alone, then one stream among others, each with a seed and without, in alternating rounds; the
best round of each counts. The seeded text must be the same every time, or the run fails.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import httpx

from benchmarks.machine import Neighbours
from benchmarks.serve.speculative import ONNX, engine
from everlearn.registry.registry import Registry
from everlearn.settings import load_settings

PROMPTS = [
    "Tell me a story about a lighthouse.",
    "How do bridges carry their own weight?",
    "Describe winter.",
]
NEW_TOKENS = 96


def body(prompt: str, seed: int | None) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": "bench", "messages": [{"role": "user", "content": prompt}], "stream": True,
        "max_tokens": NEW_TOKENS, "temperature": 0.8, "logit_bias": {"0": -100, "2": -100},
    }  # fmt: skip
    return asked if seed is None else asked | {"seed": seed}


async def stream(client: httpx.AsyncClient, prompt: str, seed: int | None) -> tuple[float, str]:
    """Tokens per second from the first piece to the last, and the text."""
    text, first_s, last_s, pieces = "", 0.0, 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body(prompt, seed)) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                last_s = time.perf_counter()
                first_s = first_s or last_s
                text += choices[0]["delta"].get("content") or ""
                pieces += 1
    return (NEW_TOKENS - 1) / (last_s - first_s), text


async def among(client: httpx.AsyncClient, prompt: str, seed: int | None, others: int) -> tuple[float, str]:
    """The same while `others` unseeded streams run."""
    beside = [asyncio.create_task(stream(client, f"{prompt} ({n})", None)) for n in range(others)]
    measured = await stream(client, prompt, seed)
    await asyncio.gather(*beside)
    return measured


async def measure(socket: str, rounds: int, others: int) -> bool:
    """Print the figures; whether every seeded text was the same."""
    best: dict[tuple[str, bool], float] = {}
    texts: dict[str, set[str]] = {prompt: set() for prompt in PROMPTS}
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=600) as client:
        await stream(client, PROMPTS[0], None)
        for turn in range(rounds):
            for prompt in PROMPTS:
                for seeded in (turn % 2 == 0, turn % 2 == 1):
                    for company, count in (("alone", 0), (f"among {others} others", others)):
                        speed, text = await among(client, prompt, 7 if seeded else None, count)
                        best[company, seeded] = max(best.get((company, seeded), 0.0), speed)
                        if seeded:
                            texts[prompt].add(text)
    for company in dict.fromkeys(company for company, _ in best):
        plain, seeded = best[company, False], best[company, True]
        print(
            f"{company}: {plain:.1f} tokens/s without a seed, {seeded:.1f} with one: {seeded / plain:.2f} times"
        )
    same = all(len(each) == 1 for each in texts.values())
    print("every seeded text was the same alone and in company" if same else f"seeded texts differ: {texts}")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serve.seeded", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", nargs="?", default="smollm2", help="an ONNX chat version in EVERLEARN_HOME")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--others", type=int, default=7)
    arguments = parser.parse_args()
    registry = Registry(load_settings())
    bundle = registry.path(registry.resolve(arguments.model))
    with Neighbours() as neighbours, engine(bundle, ONNX, {}, drafts=0) as running:
        same = asyncio.run(measure(running.socket, arguments.rounds, arguments.others))
    print(f"other programs used {neighbours.share:.0%} of the machine")
    sys.exit(not same)


if __name__ == "__main__":
    main()
