"""A batch through kills: `python -m benchmarks.serve.batches --requests 2000`.

The stock `openai` client hands a file of chat requests to a running `everlearn serve` (the ONNX engine), twice: the
first time nothing happens; the second time the process that works on batches is killed by SIGKILL after a quarter and
after two thirds of the answers, and the gateway after a half. Every line must be answered once, in the order of the
file, and both times with the same text, since greedy answers do not depend on their company with
`onnx.batch_invariant`.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
from rich.progress import Progress

from benchmarks.serve.swap import MODEL, key, server
from everlearn.registry.registry import Registry
from everlearn.settings import Settings, load_settings

NEW_TOKENS = 8
PATIENCE_S = 3600.0
KILLS = ((0.25, "serve.batches"), (0.5, "serve.gateway"), (0.66, "serve.batches"))
"""After which part of the answers what is killed: a word of its command line."""


@dataclass(frozen=True)
class Run:
    """The answers by line, and how long all took."""

    texts: list[str]
    seconds: float
    kills: list[str]


def lines(count: int) -> bytes:
    """The file: sums, each another."""
    return b"\n".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": f"What is {number} plus {number % 7}?"}],
                    "temperature": 0,
                    "max_tokens": NEW_TOKENS,
                },
            }
        ).encode()
        for number in range(count)
    )


def work_off(client: openai.OpenAI, served: psutil.Process, count: int, kills: bool, title: str) -> Run:
    """Hand the file in, kill on the way, and read the answers. Raises SystemExit when a line is missing or twice."""
    file = client.files.create(file=("questions.jsonl", lines(count)), purpose="batch")
    started_at = time.monotonic()
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    left = list(KILLS) if kills else []
    killed: list[str] = []
    with Progress() as progress:
        task = progress.add_task(title, total=count)
        while batch.status in ("validating", "in_progress", "finalizing"):
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
            answered = batch.request_counts.completed if batch.request_counts else 0
            progress.update(task, completed=answered)
            if left and answered >= left[0][0] * count:
                _, word = left.pop(0)
                kill(served, word)
                killed.append(f"{word} after {answered} answers")
            if time.monotonic() > started_at + PATIENCE_S:
                raise SystemExit(f"not done after {PATIENCE_S:.0f} s: {batch}")
    if batch.status != "completed" or batch.error_file_id or batch.output_file_id is None or left:
        raise SystemExit(f"the batch ended as {batch}; kills left: {left}")
    seconds = time.monotonic() - started_at
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    if [answer["custom_id"] for answer in answers] != [f"line-{number}" for number in range(count)]:
        raise SystemExit(f"{len(answers)} answers, or not in the order of the file")
    bodies = [answer["response"]["body"] for answer in answers]
    return Run([body["choices"][0]["message"]["content"] for body in bodies], seconds, killed)


def kill(served: psutil.Process, word: str) -> None:
    """SIGKILL for a child of the server."""
    [victim] = [child for child in served.children() if word in child.cmdline()]
    victim.kill()


async def measure(bundle: Path, count: int) -> tuple[Run, Run]:
    """Without kills, and with them, in a home of their own."""
    with tempfile.TemporaryDirectory(prefix="everlearn-batches-") as folder:
        settings = Settings(home=Path(folder) / "home")
        Registry(settings).add(bundle, MODEL)
        secret = key(settings)["authorization"].removeprefix("Bearer ")
        async with server(settings.home, {"EVERLEARN_SERVE__GATEWAYS": "1"}) as (url, process):
            served = psutil.Process(process.pid)
            with openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=8) as client:
                calm = await asyncio.to_thread(work_off, client, served, count, False, "without kills")
                return calm, await asyncio.to_thread(work_off, client, served, count, True, "with kills")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.serve.batches", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="an ONNX chat version in EVERLEARN_HOME")
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    registry = Registry(load_settings())
    calm, hit = asyncio.run(measure(registry.path(registry.resolve(arguments.model)), arguments.requests))
    for title, run in (("without kills", calm), ("with kills", hit)):
        print(
            f"{title:14} {len(run.texts)} answers, {run.seconds:.1f} s, {len(run.texts) / run.seconds:.1f}/s"
        )
    print("killed: " + "; ".join(hit.kills))
    differing = sum(one != other for one, other in zip(calm.texts, hit.texts, strict=True))
    print(f"answers that differ: {differing}")
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main()
