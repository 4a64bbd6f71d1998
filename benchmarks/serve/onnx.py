"""everlearn's ONNX engine beside its peers on the same weights: `python -m benchmarks.serve.onnx`.

everlearn is measured as users have it: through the gateway, streamed over HTTP, with and without sampling. llama.cpp
streams over HTTP too, greedy, and is credited with the better of what the client sees and what it reports itself, with
each of its types; onnxruntime-genai and OpenVINO GenAI run their bare loops on static batches. Rounds alternate between
all, so that a busy machine is busy for all; the median of the rounds counts, and the smallest and largest are shown.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from benchmarks.machine import Neighbours, cpu, peak_memory_bytes, read_bandwidth
from benchmarks.serve.gateway import free_port
from benchmarks.serve.gguf_files import gguf_file
from benchmarks.serve.streams import Timeline, decode_rate, joining, prompt_of, together, wall_rate
from everlearn.errors import NotFound
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
MODEL = "smollm2"
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.9}
NO_END = {"logit_bias": {"0": -100, "2": -100}}
STREAMS = (1, 8, 32)
PROMPT_TOKENS = 64
NEW_TOKENS = 64
LONG_PROMPT_TOKENS = 512
EQUAL = "llama.cpp Q4_0"
"""The peer with as many bytes of the same weights, which the goals compare with."""
PEERS = (EQUAL, "llama.cpp Q4_K_M", "llama.cpp Q4_1", "onnxruntime-genai", "OpenVINO GenAI")
GOALS = {"decode 1": 1.3, "decode 8": 1.8, "decode 32": 2.0, "prefill": 1.5}
BUSY_SHARE = 0.05
SETTLE_S = 1.5
"""Until a server has let go of the streams that were hung up on; what is measured next would be a fifth slower."""

Rounds = dict[str, dict[str, list[float]]]
"""measure → engine → what each round gave."""


class Report(TypedDict):
    """What `--json` writes."""

    cpu: str
    threads: int
    rounds: int
    others_cpu_share: float
    read_bandwidth: float
    weights_bytes: dict[str, int]
    peak_memory_bytes: dict[str, int]
    figures: Rounds
    goals: dict[str, dict[str, float | bool]]


class Served:
    """An engine behind HTTP: everlearn or llama.cpp."""

    def __init__(self, name: str, url: str, model: str, settings: dict[str, Any]) -> None:
        self.name, self.url, self.model, self.settings = name, url, model, settings

    def body(self, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        sizes = {"prompt": prompt_of(prompt_tokens), "max_tokens": new_tokens}
        return {"model": self.model} | sizes | self.settings

    def decode(self, streams: int) -> dict[str, float]:
        bodies = [self.body(PROMPT_TOKENS, NEW_TOKENS) for _ in range(streams)]
        timelines = asyncio.run(together(self.url, bodies))
        check(timelines, PROMPT_TOKENS, NEW_TOKENS)
        reported = sum(timeline.timings.get("predicted_per_second", 0.0) for timeline in timelines)
        rate = max(decode_rate(timelines), reported)
        return {f"decode {streams}": rate, f"with prompts {streams}": wall_rate(timelines)}

    def prefill(self) -> dict[str, float]:
        timelines = asyncio.run(together(self.url, [self.body(LONG_PROMPT_TOKENS, 1)]))
        check(timelines, LONG_PROMPT_TOKENS, 1)
        reported = timelines[0].timings.get("prompt_per_second", 0.0)
        return {"prefill": max(LONG_PROMPT_TOKENS / timelines[0].first_token_s, reported)}

    def first_token_when_full(self) -> dict[str, float]:
        """Seconds to the first token of a request that takes the last slot while all others decode."""
        running = [self.body(PROMPT_TOKENS, 8 * NEW_TOKENS) for _ in range(max(STREAMS) - 1)]
        joined = asyncio.run(joining(self.url, running, self.body(PROMPT_TOKENS, 1)))
        time.sleep(SETTLE_S)
        return {"first token s": joined.first_token_s}


class Loop:
    """A process with a library's bare loop."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self._process = name, process

    def decode(self, streams: int) -> dict[str, float]:
        times = self._run(streams, PROMPT_TOKENS, NEW_TOKENS)
        tokens = streams * NEW_TOKENS
        return {
            f"decode {streams}": (tokens - streams) / times["decode_s"],
            f"with prompts {streams}": tokens / (times["prefill_s"] + times["decode_s"]),
        }

    def prefill(self) -> dict[str, float]:
        return {"prefill": LONG_PROMPT_TOKENS / self._run(1, LONG_PROMPT_TOKENS, 1)["prefill_s"]}

    def _run(self, rows: int, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"rows": rows, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives the benchmark
    report = measure(arguments.threads, arguments.rounds, arguments.peers)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(threads: int, rounds: int, peers: Sequence[str]) -> Report:
    bandwidth = read_bandwidth(threads)
    bundle = served_bundle()
    weights = {"everlearn": sum(file.stat().st_size for file in bundle.glob("model.onnx*"))}
    with ExitStack() as stack:
        url, process = stack.enter_context(everlearn(threads))
        processes = {"everlearn": process}
        engines: list[Served | Loop] = [
            Served("everlearn", url, MODEL, GREEDY | NO_END),
            Served("everlearn, sampled", url, MODEL, SAMPLED | NO_END),
        ]
        for name in peers:
            if name == "onnxruntime-genai":
                processes[name] = stack.enter_context(loop("genai_loop", bundle, threads))
                engines.append(Loop(name, processes[name]))
                continue
            kind = "Q4_1" if name == "OpenVINO GenAI" else name.split()[1]
            file = gguf_file(kind, CACHE, tensors())
            weights[name] = file.stat().st_size
            if name == "OpenVINO GenAI":
                processes[name] = stack.enter_context(loop("openvino_loop", file, threads))
                engines.append(Loop(name, processes[name]))
            else:
                url, processes[name] = stack.enter_context(llamacpp(file, threads))
                alone = {"ignore_eos": True, "cache_prompt": False}
                engines.append(Served(name, url, MODEL, GREEDY | alone))
        figures: Rounds = defaultdict(lambda: defaultdict(list))
        with Neighbours() as others:
            for round_ in range(rounds):
                for engine in engines:
                    say(f"round {round_ + 1} of {rounds}: {engine.name}")
                    for measure_one in measures(engine):
                        with Neighbours() as others_now:
                            measured = measure_one()
                        tell(measured, others_now.share)
                        for what, value in measured.items():
                            figures[what][engine.name].append(value)
        memory = {name: peak_memory_bytes(process.pid) for name, process in processes.items()}
    bandwidth = max(bandwidth, read_bandwidth(threads))
    return Report(
        cpu=cpu(), threads=threads, rounds=rounds, others_cpu_share=others.share, read_bandwidth=bandwidth,
        weights_bytes=weights, peak_memory_bytes=memory, figures={what: dict(by) for what, by in figures.items()},
        goals=judged(figures) if EQUAL in peers else {},
    )  # fmt: skip


def measures(engine: Served | Loop) -> list[Callable[[], dict[str, float]]]:
    """What one round asks of an engine."""
    both = [engine.prefill, *(partial(engine.decode, streams) for streams in STREAMS)]
    return [*both, engine.first_token_when_full] if isinstance(engine, Served) else both


def tell(figures: dict[str, float], others_share: float) -> None:
    """One round's figures as they come, with how busy others kept the cores."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    say(
        f"    {values}"
        + (f"   (others used {others_share:.0%} of the cores)" if others_share > BUSY_SHARE else "")
    )


def judged(figures: Rounds) -> dict[str, dict[str, float | bool]]:
    """Ratios to llama.cpp at equal bytes, the sampled rates over its greedy ones: the median of the rounds' own."""
    made: dict[str, dict[str, float | bool]] = {}
    for what, goal in GOALS.items():
        pairs = zip(figures[what]["everlearn, sampled"], figures[what][EQUAL], strict=True)
        ratio = median(ours / theirs for ours, theirs in pairs)
        made[what] = {"ratio": ratio, "goal": goal, "met": ratio >= goal}
    return made


def check(timelines: list[Timeline], prompt_tokens: int, new_tokens: int) -> None:
    """A rate counts only if everyone did the same work; a server may add one token that begins the text."""
    for timeline in timelines:
        if timeline.tokens != new_tokens or timeline.prompt_tokens - prompt_tokens not in (0, 1):
            raise RuntimeError(f"asked for {prompt_tokens}+{new_tokens} tokens, got {timeline}")


def served_bundle() -> Path:
    """The int4 bundle, imported and compressed now if there is none."""
    registry = Registry(Settings(home=CACHE / "home"))
    with suppress(NotFound):
        return registry.path(registry.resolve(f"{MODEL}@champion"))
    say("importing and compressing the model, once")
    for command in (["import", MODEL], ["compress", MODEL, "--to", "int4-onnx"]):
        subprocess.run([sys.executable, "-m", "everlearn", *command], env=environment(), check=True)
    return registry.path(registry.resolve(f"{MODEL}@champion"))


def tensors() -> Path:
    """What the bundle was made of."""
    registry = Registry(Settings(home=CACHE / "home"))
    return registry.path(registry.resolve(f"{MODEL}@1"))


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVERLEARN_")}
    return inherited | {"EVERLEARN_HOME": str(CACHE / "home")} | variables


@contextmanager
def everlearn(threads: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    variables = environment(
        EVERLEARN_SERVE__PORT=str(port),
        EVERLEARN_ONNX__THREADS=str(threads),
        EVERLEARN_ONNX__SLOTS=str(max(STREAMS)),
    )
    command = [sys.executable, "-m", "everlearn", "serve", MODEL]
    with running("everlearn", command, variables, port) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def running(
    name: str,
    command: list[str],
    variables: dict[str, str],
    port: int,
    ready: str = "/ready",
    limit_s: float = 120,
) -> Iterator[subprocess.Popen[str]]:
    """A server's process once it has answered at the path ``ready``; it ends with the block."""
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, text=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}{ready}", process, log, limit_s)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[str], log: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not get ready; its server's log is {log}")


@contextmanager
def llamacpp(gguf_file: Path, threads: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    options = ["--threads", str(threads), "--slots", str(max(STREAMS))]
    with peer("benchmarks.serve.llamacpp_server", str(gguf_file), *options) as (first_line, process):
        yield first_line.removeprefix("listening "), process


@contextmanager
def loop(module: str, model: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    with peer(f"benchmarks.serve.{module}", str(model), "--threads", str(threads)) as (_, process):
        yield process


@contextmanager
def peer(module: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A peer's process once it has said that it is ready; it ends when its stdin does."""
    pipe = subprocess.PIPE
    with (CACHE / f"{module}.log").open("w") as log:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(("listening ", "ready")):
                yield line.strip(), process
                return
        raise RuntimeError(f"{module} did not start; its log is {CACHE / f'{module}.log'}")
    finally:
        process.stdin.close()
        process.wait(30)


def show(report: Report) -> None:
    figures = report["figures"]
    engines = list(figures["decode 1"])
    print(f"\n{MODEL} on {report['cpu']}, {report['threads']} threads, median of {report['rounds']} rounds (smallest to"
          f" largest), prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones\n")  # fmt: skip
    print(f"| | {' | '.join(engines)} |\n|---|{'---|' * len(engines)}")
    labels = {
        **{f"decode {n}": f"decode tok/s, {n} streams" for n in STREAMS},
        **{f"with prompts {n}": f"prompts included, {n}" for n in STREAMS},
        "prefill": f"prefill tok/s, {LONG_PROMPT_TOKENS} tokens",
        "first token s": f"first token s, joining {max(STREAMS) - 1}",
    }
    for what, label in labels.items():
        digits = 2 if what.endswith(" s") else 0
        print(f"| {label} | {' | '.join(told(figures[what].get(each), digits) for each in engines)} |")
    for what, said in (("peak_memory_bytes", "peak memory MB"), ("weights_bytes", "weights MB")):
        values = (report[what].get(each) for each in engines)
        print(f"| {said} | {' | '.join('' if value is None else f'{value / 1e6:.0f}' for value in values)} |")
    show_limits(report)
    show_goals(report)


def told(values: Sequence[float] | None, digits: int) -> str:
    if not values:
        return "-"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show_limits(report: Report) -> None:
    bandwidth = report["read_bandwidth"]
    print(f"\nmemory reads at {bandwidth / 1e9:.1f} GB/s; a token of one stream reads all weights once:")
    for engine, size_bytes in report["weights_bytes"].items():
        limit = bandwidth / size_bytes
        share = median(report["figures"]["decode 1"][engine]) / limit
        print(f"  {engine}: {size_bytes / 1e6:.0f} MB, at most {limit:.0f} tok/s, {share:.0%} of it reached")


def show_goals(report: Report) -> None:
    print(f"\neverlearn (gateway, HTTP, sampling) over {EQUAL} (greedy)")
    for name, goal in report["goals"].items():
        verdict = "met" if goal["met"] else "missed"
        print(f"  {name:10} {goal['ratio']:.2f}x  goal {goal['goal']:.1f}x  {verdict}")
    if (share := report["others_cpu_share"]) > BUSY_SHARE:
        print(f"\nOther processes used {share:.0%} of the cores meanwhile: run it again on a quiet machine.")


def say(text: str) -> None:
    print(f"── {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
