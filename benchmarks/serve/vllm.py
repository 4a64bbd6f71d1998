"""vLLM behind everlearn's gateway beside ``vllm serve``, and what compressing gains there: ``python -m benchmarks.serve.vllm``.

Both serve the very same files, one after the other, since each takes the whole GPU; the same client streams from both,
greedy, with the end token forbidden. The best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.serve.gateway import free_port
from benchmarks.serve.onnx import GREEDY, Served, environment, running, say
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

MODEL = "bench"
STREAMS = (1, 16, 64)
START_LIMIT_S = 400

Figures = dict[str, float]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model_dir", type=Path, help="a Hugging Face folder of a text model")
    parser.add_argument("--to", action="append", default=[], choices=["w8a8", "w4a16"], help="and this of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as home:
        report = measure(Path(home), chosen.model_dir, chosen.to, chosen.rounds)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    home: Path, model_dir: Path, targets: Sequence[str], rounds: int
) -> dict[str, dict[str, Figures]]:
    """Version → server → figure → the best."""
    variables = environment(EVERLEARN_HOME=str(home))
    for command in (
        ["import", str(model_dir), "--name", MODEL],
        *(["compress", f"{MODEL}@1", "--to", to] for to in targets),
    ):
        say(" ".join(command))
        subprocess.run([sys.executable, "-m", "everlearn", *command], env=variables, check=True)
    registry = Registry(Settings(home=home))
    ends = json.loads((model_dir / "config.json").read_text())["eos_token_id"]
    no_end = {"logit_bias": {str(end): -100 for end in (ends if isinstance(ends, list) else [ends])}}
    report: dict[str, dict[str, Figures]] = {}
    for number, name in enumerate(("as it is", *targets), 1):
        directory = registry.path(registry.resolve(f"{MODEL}@{number}"))
        for server, start in (
            ("vllm serve", partial(vllm, directory)),
            ("everlearn", partial(everlearn, f"{MODEL}@{number}", variables)),
        ):
            say(f"{name}: {server}")
            with start() as url:
                served = Served(server, url, MODEL, GREEDY | no_end)
                report.setdefault(name, {})[server] = best(served, rounds)
    return report


def best(served: Served, rounds: int) -> Figures:
    """The best of some rounds, after one that is not counted."""
    measures: list[Callable[[], Figures]] = [served.prefill, *(partial(served.decode, n) for n in STREAMS)]
    found: Figures = {}
    for round_ in range(rounds + 1):
        for measure_one in measures:
            figures = measure_one()
            say("    " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            if round_:
                found |= {name: max(value, found.get(name, 0.0)) for name, value in figures.items()}
    return found


@contextmanager
def vllm(directory: Path) -> Iterator[str]:
    """What `vllm serve` runs, with its own defaults."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(directory)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
    ]
    with running("vllm", command, environment(), port, "/health", START_LIMIT_S):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def everlearn(version: str, variables: dict[str, str]) -> Iterator[str]:
    """The gateway and its vLLM, as ``everlearn serve`` starts them."""
    port = free_port()
    command = [sys.executable, "-m", "everlearn", "serve", version, "--engine", "vllm", "--port", str(port)]
    with running("everlearn", command, variables, port, limit_s=START_LIMIT_S):
        yield f"http://127.0.0.1:{port}"


def show(report: dict[str, dict[str, Figures]]) -> None:
    """A row for each version and server; everlearn's with its share of the bare server's."""
    labels = {"prefill": "prefill of 512", **{f"decode {n}": f"{n} streams" for n in STREAMS}}
    print("tokens/s | " + " | ".join(labels.values()))
    plain = report["as it is"]
    for version, servers in report.items():
        for server, figures in servers.items():
            cells = [f"{figures[key]:,.0f}" for key in labels]
            print(f"{version}, {server} | " + " | ".join(cells))
        shares = [servers["everlearn"][key] / servers["vllm serve"][key] for key in labels]
        print(f"{version}, everlearn over vllm serve | " + " | ".join(f"{share:.2f}" for share in shares))
        gains = [servers["everlearn"][key] / plain["everlearn"][key] for key in labels]
        print(f"{version} over as it is, everlearn | " + " | ".join(f"{gain:.2f}" for gain in gains))


if __name__ == "__main__":
    main()
