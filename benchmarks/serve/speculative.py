"""Tokens/s of one stream with and without guessed tokens, on answers that copy and on free ones; the texts compared.

Engine processes answer over HTTP, one at a time, in alternating rounds; the best round of each counts. Beside them
what the machine allows: the time of a step by how many tokens it checks, and the bytes that each step reads.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import numpy as np

from benchmarks.machine import Neighbours, read_bandwidth
from benchmarks.serve.onnx import BUSY_SHARE, say, served_bundle
from serve.engines.onnx.decoding.decoder import Decoder

NEW_TOKENS = 128
KNOWN_TOKENS = 200
STEP_ROUNDS = 25
PASSAGE = """The harbour of Marstrand was built in 1629 by Danish masons, who cut the granite from the island itself.
For two hundred years it was the only port on the coast that did not freeze in winter, so herring boats from
Gothenburg, Skagen and Bergen lay side by side along its quay. In 1786 a storm took the lighthouse and eleven
boats; the town paid for a new tower of brick, which still stands. Today some 1,300 people live there all year."""
CODE = """def mean_of_column(rows, column):
    total = 0
    count = 0
    for row in rows:
        value = row.get(column)
        if value is None:
            continue
        total += float(value)
        count += 1
    if count == 0:
        raise ValueError(f"no values in column {column}")
    return total / count
"""
ORDER = """Order 48213 of 3 March 2026. Customer: Ingrid Halvorsen, Storgata 14, 5020 Bergen, Norway.
Items: 2 x wool blanket (grey), 1 x oil lamp, 4 x candle holder. Paid by card, total 2,340 NOK. Ships by 9 March."""
COPYING = {
    "repeat a text": f"Repeat this text word for word:\n\n{PASSAGE}",
    "edit a text": f"Correct the spelling of this text and change nothing else:\n\n{PASSAGE.replace('herring', 'hering')}",
    "edit code": f"Rename the function below to average_of_column and print it again:\n\n```python\n{CODE}```",
    "extract": f"Copy the order below as a list with one line per field:\n\n{ORDER}",
    "summarize": f"Summarize this text in two sentences, in its own words:\n\n{PASSAGE}",
    "quote": f"Which sentences of this text are about boats? Quote them in full.\n\n{PASSAGE}",
}
FREE = {
    "story": "Write a story about a girl who finds a door in a tree.",
    "explain": "Explain how a refrigerator works.",
    "letter": "Write a letter to a friend about moving to a new city.",
    "advice": "How can I learn to play the guitar?",
    "essay": "Why do people travel?",
    "recipe": "How do I cook rice?",
}


class Program(NamedTuple):
    """A kind of engine: its module, the setting for guesses, and the counters of guesses and of right ones."""

    module: str
    setting: str
    counters: tuple[str, str]


ONNX = Program(
    "serve.engines.onnx",
    "EVERLEARN_ONNX__SPECULATIVE_TOKENS",
    ("everlearn_engine_draft_tokens", "everlearn_engine_accepted_draft_tokens"),
)
VLLM = Program(
    "serve.engines.vllm",
    "EVERLEARN_VLLM__SPECULATIVE_TOKENS",
    ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens"),
)


@dataclass
class Engine:
    """A running engine and what it did."""

    client: httpx.Client
    counters: tuple[str, str]
    socket: str
    rates: dict[str, float] = field(default_factory=dict[str, float])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    accepted: dict[str, float] = field(default_factory=dict[str, float])

    def ask(self, name: str, question: str) -> None:
        """Stream one answer; keep its best rate from the first token to the last, its text, and what was guessed."""
        body = {"model": "bench", "temperature": 0, "max_tokens": NEW_TOKENS, "stream": True,
                "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": question}]}  # fmt: skip
        before = self._counters()
        text, tokens, arrivals_at = "", 0, [0.0]
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                if piece := "".join(choice["delta"].get("content") or "" for choice in event["choices"]):
                    text += piece
                    arrivals_at.append(time.perf_counter())
        rate = (tokens - 1) / (arrivals_at[-1] - arrivals_at[1])
        self.rates[name] = max(rate, self.rates.get(name, 0.0))
        self.texts[name] = text
        guessed, right = (now - then for now, then in zip(self._counters(), before, strict=True))
        self.accepted[name] = right / guessed if guessed else 0.0

    def _counters(self) -> list[float]:
        """Tokens guessed, and guessed right, since the engine's start."""
        page = self.client.get("/metrics").text
        found = (re.findall(rf"^{name}_total(?:{{.*}})? (\S+)", page, re.MULTILINE) for name in self.counters)
        return [float(values[0]) if values else 0.0 for values in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drafts", type=int, default=6)
    parser.add_argument("--bundle", type=Path, help="an ONNX bundle (default: SmolLM2 int4, made if need be)")
    parser.add_argument("--vllm", type=Path, metavar="TENSORS", help="measure vLLM on this bundle instead")
    arguments = parser.parse_args()
    if arguments.vllm:
        show(*measure({"vllm": (arguments.vllm, VLLM, {})}, arguments.rounds, arguments.drafts))
        return
    bundle = arguments.bundle or served_bundle()
    bandwidth = read_bandwidth(arguments.threads)
    costs = step_costs(bundle, arguments.threads, arguments.drafts)
    kinds = {
        name: (bundle, ONNX, {"EVERLEARN_ONNX__THREADS": str(arguments.threads),
                              "EVERLEARN_ONNX__BATCH_INVARIANT": str(name == "invariant")})
        for name in ("default", "invariant")
    }  # fmt: skip
    engines, others_share = measure(kinds, arguments.rounds, arguments.drafts)
    show_costs(costs, bandwidth, sum(file.stat().st_size for file in bundle.glob("model.onnx*")))
    show(engines, others_share)


def step_costs(bundle: Path, threads: int, drafts: int) -> dict[int, float]:
    """Seconds of a step by the number of its tokens: the best of some, in turn."""
    decoder = Decoder(bundle, rows=1, threads=threads, context=512, drafts=drafts)
    tokens = np.random.default_rng(0).integers(100, 40_000, KNOWN_TOKENS + drafts + 1)
    decoder.prefill(0, tokens[:KNOWN_TOKENS], 0)
    best: dict[int, float] = defaultdict(lambda: float("inf"))
    for _ in range(STEP_ROUNDS):
        for width in range(1, drafts + 2):
            begin = time.perf_counter()
            decoder.verify(tokens[KNOWN_TOKENS : KNOWN_TOKENS + width], KNOWN_TOKENS + 1)
            best[width] = min(best[width], time.perf_counter() - begin)
    return best


def measure(
    kinds: dict[str, tuple[Path, Program, dict[str, str]]], rounds: int, drafts: int
) -> tuple[dict[str, tuple[Engine, Engine]], float]:
    """Of each kind an engine without guesses and one with them; and how busy others were."""
    with ExitStack() as stack:
        engines = {
            name: (
                stack.enter_context(engine(bundle, program, variables, 0)),
                stack.enter_context(engine(bundle, program, variables, drafts)),
            )
            for name, (bundle, program, variables) in kinds.items()
        }
        with Neighbours() as others:
            for round_ in range(rounds):
                for name, question in (COPYING | FREE).items():
                    say(f"round {round_ + 1} of {rounds}: {name}")
                    for one in (each for pair in engines.values() for each in pair):
                        one.ask(name, question)
    return engines, others.share


@contextmanager
def engine(bundle: Path, program: Program, variables: dict[str, str], drafts: int) -> Iterator[Engine]:
    """An engine process that ends with its standard input."""
    with TemporaryDirectory(prefix="everlearn-bench-") as folder:
        socket = Path(folder) / "engine.sock"
        command = [sys.executable, "-m", program.module, "--bundle", str(bundle), "--model", "bench"]
        process = subprocess.Popen(
            [*command, "--uds", str(socket)],
            stdin=subprocess.PIPE,
            env=os.environ | variables | {program.setting: str(drafts)},
        )
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=300) as client:
            while True:
                try:
                    client.get("/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield Engine(client, program.counters, str(socket))
        process.terminate()
        process.wait(60)


def show_costs(costs: dict[int, float], bandwidth: float, weights_bytes: int) -> None:
    print(f"\none step, {KNOWN_TOKENS} tokens known; {weights_bytes / 1e6:.0f} MB of weights are read in each,"
          f" at {bandwidth / 1e9:.1f} GB/s in {weights_bytes / bandwidth * 1e3:.1f} ms")  # fmt: skip
    print(f"{'tokens checked':18}{'ms':>8}{'steps':>8}{'at best, x':>12}")
    for width, cost_s in costs.items():
        ratio = cost_s / costs[1]
        print(f"{width:<18}{cost_s * 1e3:8.1f}{ratio:8.2f}{width / ratio:12.2f}")


def show(engines: dict[str, tuple[Engine, Engine]], others_share: float) -> None:
    columns = "".join(f"{name + ', 0':>15}{name + ', n':>15}" for name in engines)
    print(f"\n{'tok/s, one stream':18}{columns}{'guessed right':>15}" + "".join(f"{n + ' x':>13}" for n in engines)
          + "  same text")  # fmt: skip
    for kind, questions in (("copying", COPYING), ("free", FREE)):
        gains: list[list[float]] = []
        for name in questions:
            pairs = list(engines.values())
            gains.append([guessing.rates[name] / plain.rates[name] for plain, guessing in pairs])
            same = ", ".join(
                f"{kind} {'yes' if plain.texts[name] == guessing.texts[name] else 'no'}"
                for kind, (plain, guessing) in engines.items()
            )
            rates = "".join(f"{one.rates[name]:15.0f}" for pair in pairs for one in pair)
            print(f"{name:18}{rates}{pairs[-1][1].accepted[name]:15.0%}"
                  + "".join(f"{gain:13.2f}" for gain in gains[-1]) + f"  {same}")  # fmt: skip
        means = "".join(f"{geometric_mean(column):13.2f}" for column in zip(*gains, strict=True))
        print(f"{kind + ', mean':{33 + 30 * len(engines)}}{means}")
    if others_share > BUSY_SHARE:
        print(
            f"\nOther processes used {others_share:.0%} of the cores meanwhile: run it again on a quiet machine."
        )


if __name__ == "__main__":
    main()
