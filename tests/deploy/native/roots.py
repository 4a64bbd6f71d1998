"""Roots that hold Debian's Python, the runner and a model, and nothing else: of this machine, and of arm64 under qemu."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TEST_HOME
from tests.machine.arm64 import CPUINFO, NotFetched, arm64_root, python_root

EMULATOR = "qemu-aarch64-static"
CPU = "cortex-a72"  # a Raspberry Pi 4's
INSIDE = """\
set -e
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
[ ! -e "$1/cpuinfo" ] || mount --bind "$1/cpuinfo" "$1/proc/cpuinfo"
exec chroot "$@"
"""
PYTHON = """\
#!/usr/bin/qemu /usr/bin/python3.11.arm64
import os, sys
os.execv("/usr/bin/qemu", ["qemu", "-0", sys.argv[0], "/usr/bin/python3.11.arm64", *sys.argv[1:]])
"""
"""The kernel starts no arm64 program here, so the interpreter is a script that qemu's Python reads: it lets qemu run Python
under the name by which it was called, which is how a virtual environment's finds its packages."""


def root_for(architecture: str, runner: Path, model: Path, folder: Path) -> tuple[str, ...]:
    """Fills ``folder``; the command that starts the runner in it, without a variable of this process.

    Skips where such a root cannot be made.
    """
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of a user's own here: a root of its own takes one")
    try:
        if architecture == "arm64":
            shutil.copytree(arm64_root(TEST_HOME / "arm64") / "usr", folder / "usr", symlinks=True)
            python = TEST_HOME / "arm64"
        elif platform.machine() == "x86_64":
            python = python_root(TEST_HOME / "amd64", "amd64")
            shutil.copytree(python / "usr", folder / "usr", symlinks=True)
        else:
            pytest.skip("x64's Python does not run here")
    except NotFetched as why:
        pytest.skip(str(why))
    for name in ("lib", "lib64"):
        if (python / name).exists():
            shutil.copytree(python / name, folder / name, symlinks=True)
    for name in ("proc", "dev", "tmp"):
        (folder / name).mkdir()
    if architecture == "arm64":
        emulate(folder, python)
    shutil.copyfile(runner, folder / "runner")
    shutil.copytree(model, folder / "model")
    inside = folder.with_suffix(".sh")
    inside.write_text(INSIDE)
    variables = ("PATH=/usr/bin:/usr/sbin:/bin:/sbin", f"QEMU_CPU={CPU}", "OPENBLAS_NUM_THREADS=1")
    entered = ("unshare", "-rm", "sh", str(inside), str(folder), "/usr/bin/python3.11", "/runner")
    return ("env", "-i", *variables, *entered)


def emulate(folder: Path, python: Path) -> None:
    """Lets qemu stand for the CPU. onnxruntime reads /proc/cpuinfo and /sys, which are to be the emulated machine's."""
    emulator = shutil.which(EMULATOR)
    if not emulator:
        pytest.skip("qemu-user-static is not installed")
    shutil.copy(emulator, folder / "usr" / "bin" / "qemu")
    interpreter = folder / "usr" / "bin" / "python3.11"
    interpreter.rename(interpreter.with_name("python3.11.arm64"))
    interpreter.write_text(PYTHON)
    interpreter.chmod(0o755)
    shutil.copytree(python / "sys", folder / "sys")
    (folder / "cpuinfo").write_text(CPUINFO.format(features="asimd"))
