"""Starts a training run in processes of its own, and tells its progress. Started again, it goes on.

A run folder is one run: finished, its stored outcome is returned at once; half, it resumes from its checkpoint.
What a run is, ``train.runs.identity`` says; one process at a time works on it, see ``train.runs.claim``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from everlearn import errors
from everlearn.bundles.durable import write_file
from everlearn.errors import ConfigError, Conflict, Corrupt, Unavailable
from everlearn.processes.child import ALL_MEMORY, Limits, run_child
from everlearn.processes.program import QUIET, describe_death, environment, python
from everlearn.progress import Progress, silent
from train import errors as failures
from train.recipe import TrainRecipe
from train.runs.claim import WAIT_S, claimed, refuse_foreign, wait_for_ranks
from train.runs.full_disk import full_disk_told
from train.runs.identity import Contents, base_digest, contents_of, refuse_changed, run_diff
from train.runs.legacy_run_folder import made_of

RUN = "run.json"
"""A run's request: the folder that has it is a run's."""

STOP_POLL_S = 0.5
TELL_EVERY_S = 2.0

OnStep = Callable[[dict[str, Any]], None]
"""Called with the fields of ``train.report.StepReport``, by name."""


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
    contents: Contents | None = None,
    base_ref: str | None = None,
) -> Outcome:
    """Trains ``recipe`` in ``run_dir`` from ``model_dir``, or from scratch.

    ``tokenizer_dir``: of the model, or of the architecture, by default; from scratch without one, a tokenizer is trained
    on the data.
    ``should_stop`` is asked twice a second; once true, the run saves a checkpoint and Stopped is raised.
    So it is on KeyboardInterrupt. ``contents``: of the recipe's files, read here where they are not given.
    ``base_ref`` names the version in ``model_dir``.
    Raises the run's own errors as themselves: InvalidInput, ConfigError, Conflict, Diverged, Stopped; and
    Unavailable with the end of its log where it died.
    """
    with full_disk_told(run_dir), claimed(run_dir, WAIT_S):
        known = contents_of(recipe, progress) if contents is None else contents
        request = open_run(recipe, model_dir, tokenizer_dir, run_dir, known, base_ref)
        if not (run_dir / "outcome.json").is_file():
            wait_for_ranks(run_dir)
            _prepare(recipe, run_dir, known, progress, nice)
            progress("starting", None)
            _train(recipe, run_dir, request["threads"], progress, nice, on_step, should_stop)
        stored = json.loads((run_dir / "outcome.json").read_bytes())
        return Outcome(run_dir / "model", stored["metrics"], stored["recipe"])


def open_run(
    recipe: TrainRecipe,
    model_dir: Path | None,
    tokenizer_dir: Path | None,
    run_dir: Path,
    contents: Contents,
    base_ref: str | None = None,
) -> dict[str, Any]:
    """Writes run.json. Raises Conflict with the differences where the folder holds another run."""
    if model_dir is None and recipe.architecture is None:
        raise ConfigError("the recipe has neither a base nor an architecture", param="base")
    if model_dir is not None and recipe.architecture is not None:
        raise ConfigError(
            "the recipe has both a base and an architecture: leave one out", param="architecture"
        )
    tokenizer_dir = tokenizer_dir or (recipe.architecture and recipe.architecture.taken_tokenizer)
    if model_dir is None and tokenizer_dir is None and recipe.data.store:
        raise ConfigError(
            "from scratch on a store takes the tokenizer that the store was made with: name its model or its folder",
            param="architecture.tokenizer.of",
        )
    request = {
        "recipe": recipe.model_dump(mode="json"),
        "contents": contents,
        "base": {"ref": base_ref, "digest": base_digest(model_dir)} if model_dir else None,
        "model_dir": str(model_dir.absolute()) if model_dir else None,
        "tokenizer_dir": str((tokenizer_dir or model_dir or run_dir / "tokenizer").absolute()),
        "threads": recipe.threads or os.cpu_count() or 1,
    }
    if before := begun(run_dir):
        refuse_other_run(run_dir, before, request)
        request["threads"] = recipe.threads or before["threads"]
        if before.get("base"):
            request["base"] = before["base"]
            request["recipe"]["base"] = before["recipe"]["base"]  # what it was begun as
    else:
        refuse_foreign(run_dir, RUN)
    write_file(run_dir / RUN, json.dumps(request, indent=1).encode())
    return request


def begun(run_dir: Path) -> dict[str, Any] | None:
    """What run.json says, or would say today of a run that an earlier version began; None where none was begun.

    Raises Corrupt.
    """
    before = read_written(run_dir / RUN)
    if before is not None and "contents" not in before:
        before |= made_of(run_dir, before) or {}
    return before


def read_written(file: Path) -> dict[str, Any] | None:
    """What a run wrote there as a JSON object; None without the file. Raises Corrupt."""
    try:
        said = json.loads(file.read_bytes()) if file.is_file() else None
    except ValueError as error:
        raise Corrupt(f"{file} is not what was written ({error}): remove {file.parent}") from None
    if said is not None and not isinstance(said, dict):
        raise Corrupt(f"{file} is not what was written (no object): remove {file.parent}")
    return said


def refuse_other_run(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Conflict with what differs, and what to do."""
    if "contents" not in before:
        raise Conflict(
            f"{run_dir} holds a run of an earlier version, which did not write down what its files held: remove it, or "
            "choose another folder (--run-dir)",
            param="run_dir",
        )
    lines = run_diff(before, now)
    if not lines:
        return
    old = before.get("base") or {}
    same_base = old.get("digest") == (now["base"] or {}).get("digest")
    back = "" if same_base or not old.get("ref") else f" (--set base={old['ref']} names its base)"
    raise Conflict(
        f"{run_dir} holds another run; go on with that one{back}, or choose another folder (--run-dir). "
        "What differs:\n  " + "\n  ".join(lines),
        param="run_dir",
    )


def _prepare(recipe: TrainRecipe, run_dir: Path, contents: Contents, progress: Progress, nice: int) -> None:
    """Fills ``data/``, and from scratch ``tokenizer/``: once for a run, whatever becomes of the files."""
    if not recipe.data.files or (run_dir / "data").exists():
        return
    limits = Limits("the data", memory_bytes=ALL_MEMORY, wall_s=None, param="data")
    run_child("train.runs.prepare", {"run_dir": str(run_dir), "nice": nice}, progress, limits)
    card = json.loads((run_dir / "data" / "card.json").read_bytes())
    try:
        refuse_changed(contents, [source["sha256"] for source in card["sources"]])
    except Conflict:
        shutil.rmtree(run_dir / "data")
        raise


def command(recipe: TrainRecipe, run_dir: Path, nice: int) -> list[str]:
    """What is run: one process, or torchrun."""
    run = ["train", str(run_dir), "--follow", "--nice", str(nice)]
    if recipe.parallel == "none":
        return python(*run)
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return python(*torchrun, f"--nproc-per-node={recipe.ranks}", "-m", *run)


def variables(recipe: TrainRecipe, threads: int) -> dict[str, str]:
    """What the environment of each rank has besides."""
    added = {
        "OMP_NUM_THREADS": str(max(1, threads // recipe.ranks)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS asks for to be deterministic
    }
    if recipe.parallel != "none" and sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return QUIET | added


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
            env=environment(**variables(recipe, threads)),
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
        elif "told" in message:
            progress(message["told"], None)
        elif "error" in message:
            kind = getattr(failures, message["error"], None) or getattr(errors, message["error"])
            raise kind(message["message"], param=message["param"])
        elif message.get("done"):
            done = True
    if not done:
        raise Unavailable(describe_death("training", child.wait(), log))


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
