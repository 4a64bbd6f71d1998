"""Starts a training run in processes of its own, and tells its progress. Started again, it goes on.

A run folder is one run: finished, its stored outcome is returned at once; half, it resumes from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from everlearn import errors
from everlearn.child import ALL_MEMORY, Limits, run_child
from everlearn.durable import write_file
from everlearn.errors import ConfigError, Conflict, Unavailable
from everlearn.progress import Progress, silent
from train import failures
from train.recipe import TrainRecipe, recipe_diff

LOG_TAIL_CHARS = 1500
STOP_POLL_S = 0.5
TELL_EVERY_S = 2.0

OnStep = Callable[[dict[str, Any]], None]
"""Called with the fields of ``train.loop.StepReport``, by name."""


@dataclass(frozen=True)
class Outcome:
    """``directory``: a Hugging Face directory. ``recipe``: with everything decided that was left open."""

    directory: Path
    metrics: dict[str, Any]
    recipe: dict[str, Any]


def launch(
    recipe: TrainRecipe,
    *,
    model_dir: Path | None,
    tokenizer_dir: Path | None,
    run_dir: Path,
    progress: Progress = silent,
    nice: int = 0,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Trains ``recipe`` in ``run_dir`` from ``model_dir``, or from scratch.

    ``tokenizer_dir``: of the model by default; from scratch without one, a tokenizer is trained on the data.
    ``should_stop`` is asked twice a second; once true, the run saves a checkpoint and Stopped is raised.
    So it is on KeyboardInterrupt. Raises the run's own errors as themselves: InvalidInput, ConfigError, Conflict, Diverged, Stopped; and
    Unavailable with the end of its log where it died.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    request = open_run(recipe, model_dir, tokenizer_dir, run_dir)
    if not (run_dir / "outcome.json").is_file():
        if recipe.data.train or (model_dir is None and tokenizer_dir is None):
            limits = Limits("the data", memory_bytes=ALL_MEMORY, wall_s=None, param="data")
            run_child("train.prepare_run", {"run_dir": str(run_dir), "nice": nice}, progress, limits)
        progress("starting", None)
        _train(recipe, run_dir, request["threads"], progress, nice, on_step, should_stop)
    stored = json.loads((run_dir / "outcome.json").read_bytes())
    return Outcome(run_dir / "model", stored["metrics"], stored["recipe"])


def open_run(
    recipe: TrainRecipe, model_dir: Path | None, tokenizer_dir: Path | None, run_dir: Path
) -> dict[str, Any]:
    """Writes run.json. Raises Conflict with the differences where the folder holds a run of another recipe."""
    if model_dir is None and recipe.architecture is None:
        raise ConfigError("the recipe has neither a base nor an architecture", param="base")
    if model_dir is not None and recipe.architecture is not None:
        raise ConfigError(
            "the recipe has both a base and an architecture: leave one out", param="architecture"
        )
    if model_dir is None and tokenizer_dir is None and recipe.data.store:
        raise ConfigError(
            "from scratch on a store takes the tokenizer that the store was made with", param="data"
        )
    file = run_dir / "run.json"
    said = recipe.model_dump(mode="json")
    threads = recipe.threads or os.cpu_count() or 1
    if file.is_file():
        before = json.loads(file.read_bytes())
        if lines := recipe_diff(before["recipe"], said):
            raise Conflict(
                f"{run_dir} holds a run of another recipe; go on with that one, or choose another folder. "
                "What differs:\n  " + "\n  ".join(lines)
            )
        threads = recipe.threads or before["threads"]
    request = {
        "recipe": said,
        "model_dir": str(model_dir.absolute()) if model_dir else None,
        "tokenizer_dir": str((tokenizer_dir or model_dir or run_dir / "tokenizer").absolute()),
        "threads": threads,
    }
    write_file(file, json.dumps(request, indent=1).encode())
    return request


def command(recipe: TrainRecipe, run_dir: Path, nice: int) -> list[str]:
    """What is run: one process, or torchrun."""
    module = ["-m", "train", str(run_dir), "--follow", "--nice", str(nice)]
    if recipe.parallel == "none":
        return [sys.executable, "-P", *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [sys.executable, "-P", *torchrun, f"--nproc-per-node={recipe.ranks}", *module]


def environment(recipe: TrainRecipe, threads: int) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path and os.path.isdir(path))
    added = {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": str(max(1, threads // recipe.ranks)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS asks for to be deterministic
    }
    if recipe.parallel != "none" and sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return os.environ | added


def _train(
    recipe: TrainRecipe,
    run_dir: Path,
    threads: int,
    progress: Progress,
    nice: int,
    on_step: OnStep | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    with (run_dir / "log.txt").open("wb+") as log:
        child = subprocess.Popen(
            command(recipe, run_dir, nice),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(recipe, threads),
            start_new_session=True,  # Ctrl-C at a terminal reaches the parent alone
        )
        over = threading.Event()
        watcher = threading.Thread(target=_stop_when_asked, args=(child, should_stop, over), daemon=True)
        watcher.start()
        try:
            try:
                _converse(child, progress, on_step, log)
            except KeyboardInterrupt:
                progress("saving a checkpoint; once more ends at once", None)
                child.terminate()
                _converse(child, progress, on_step, log)
        finally:
            over.set()
            assert child.stdin
            child.stdin.close()  # what follows its parent ends now
            child.kill()
            child.wait()
            watcher.join()


def _converse(
    child: subprocess.Popen[str], progress: Progress, on_step: OnStep | None, log: IO[bytes]
) -> None:
    assert child.stdout
    done, told = False, 0.0
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "report" in message:
            report = message["report"]
            if time.monotonic() - told > TELL_EVERY_S or report["step"] == report["steps"]:
                progress(describe(report), report["step"] / report["steps"])
                told = time.monotonic()
            if on_step:
                on_step(report)
        elif "error" in message:
            kind = getattr(failures, message["error"], None) or getattr(errors, message["error"])
            raise kind(message["message"], param=message["param"])
        elif message.get("done"):
            done = True
    if not done:
        _raise_dead(child, log)


def describe(report: dict[str, Any]) -> str:
    """One line of progress for a person."""
    minutes, seconds = divmod(int(report["seconds_left"]), 60)
    return (
        f"training: step {report['step']}/{report['steps']}, loss {report['loss']:.3f}, "
        f"{report['tokens_per_s']:.0f} tokens/s, {minutes}:{seconds:02d} left"
    )


def _stop_when_asked(
    child: subprocess.Popen[str], should_stop: Callable[[], bool] | None, over: threading.Event
) -> None:
    while should_stop and not over.wait(STOP_POLL_S):
        if should_stop():
            child.terminate()
            return


def _raise_dead(child: subprocess.Popen[str], log: IO[bytes]) -> NoReturn:
    code = child.wait()
    log.seek(0)
    tail = log.read().decode("utf-8", "replace").replace("\r", "\n").strip()[-LOG_TAIL_CHARS:]
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit {code}"
    hint = " (out of memory?)" if code == -9 else ""
    raise Unavailable(f"training {how}{hint}; its last words:\n{tail}")
