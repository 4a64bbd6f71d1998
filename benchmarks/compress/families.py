"""Models of several families, in, smaller, served and asked: `python -m benchmarks.compress.families`, the price of each step.

Each of the catalogue's models is imported, made into a target, served by `everlearn serve` on a port of its own, and asked
over HTTP. Everything goes through the command line, in EVERLEARN_HOME; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.machine import Neighbours, cpu
from everlearn.chat.stops import stops_of
from everlearn.errors import NotFound
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import load_settings

MODELS = {"smollm2": "int4-onnx", "minilm": "int8-onnx", "gemma3-270m": "int4-onnx"}
QUESTION = "The capital of France is"
NEW_TOKENS = 64
READY_S = 180


def everlearn(*arguments: str) -> float:
    """Runs a command; returns its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "everlearn", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def versions(model: str) -> list[Version]:
    """Those that are there, the oldest first."""
    try:
        return sorted(Registry(load_settings()).versions(model), key=lambda one: one.version)
    except NotFound:
        return []


def made(model: str, to: str) -> Version | None:
    """The version of ``model`` that is a ``to``."""
    found = [one for one in versions(model) if one.manifest.recipe.get("export", {}).get("to") == to]
    return found[-1] if found else None


@contextmanager
def served(ref: str) -> Iterator[httpx.Client]:
    """`everlearn serve` of one version, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "everlearn", "serve", ref, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                if not is_ready(process, client):
                    log.seek(0)
                    raise SystemExit(f"{ref} is not served:\n{log.read()[-2000:]}")
                yield client
        finally:
            process.terminate()
            process.wait(30)


def is_ready(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    """Waits until it says so; False where it ended, or took too long."""
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/ready").status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    return False


def ask(client: httpx.Client, model: str, task: str, stops: Sequence[int]) -> dict[str, Any]:
    """An answer, and tokens (of an encoder: texts) per second, the best of three; ``stops`` end no answer."""
    if task == "embed":
        body = {"model": model, "input": [QUESTION] * 32}
        best = 0.0
        for _ in range(3):
            started = time.perf_counter()
            answer = client.post("/v1/embeddings", json=body).raise_for_status().json()
            best = max(best, 32 / (time.perf_counter() - started))
        return {"answer": f"{len(answer['data'][0]['embedding'])} numbers", "per_second": best}
    body = {
        "model": model, "prompt": QUESTION, "max_tokens": NEW_TOKENS, "temperature": 0,
        "logit_bias": {str(one): -100 for one in stops},
    }  # fmt: skip
    best, text = 0.0, ""
    for _ in range(3):
        started = time.perf_counter()
        answer = client.post("/v1/completions", json=body).raise_for_status().json()
        best = max(best, answer["usage"]["completion_tokens"] / (time.perf_counter() - started))
        text = answer["choices"][0]["text"]
    return {"answer": text, "per_second": best}


def go_through(model: str, to: str) -> dict[str, Any]:
    """One model from nothing to an answer."""
    seconds = {}
    if not versions(model):
        seconds["import_s"] = everlearn("import", model)
    if made(model, to) is None:
        seconds["compress_s"] = everlearn("compress", model, "--to", to)
    small = made(model, to)
    assert small
    parent = versions(model)[0]
    stops = stops_of(Registry(load_settings()).path(small)).ids
    with served(small.ref) as client:
        said = ask(client, client.get("/v1/models").json()["data"][0]["id"], small.task, stops)
    return {
        "model": model,
        "parameters": parent.manifest.parameters,
        "to": to,
        "parent_bytes": parent.manifest.size_bytes,
        "size_bytes": small.manifest.size_bytes,
        **seconds,
        **{key: one for key, one in small.manifest.metrics.items() if isinstance(one, float)},
        **said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.compress.families", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL[=TARGET]")
    arguments = parser.parse_args()
    print(cpu())
    with Neighbours() as neighbours:
        for one in arguments.models:
            model, _, to = one.partition("=")
            print(json.dumps(go_through(model, to or MODELS[model]), indent=1), flush=True)
    print(f"other programs used {neighbours.share:.0%} of the machine")


if __name__ == "__main__":
    main()
