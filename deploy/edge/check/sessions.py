"""Where sessions of a target run on this machine: in node, as a process here, or as one of another CPU under qemu."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.edge.targets import TARGETS
from deploy.edge.web.packages import node, node_modules
from everlearn.bundles.durable import write_file
from everlearn.errors import NotFound, Unavailable, Unsupported
from everlearn.settings import Settings

PROGRAM = Path(__file__).with_name("native_session.py")
WEB_PROGRAM = Path(__file__).with_name("web_session.js")
TIMEOUT_S = 600
SAID = 600
CORTEX_A72 = b"""processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


@dataclass(frozen=True)
class Place:
    """A command that answers requests as deploy.edge.check.native_session does. ``on``: what it is, for people.

    ``is_device``: whether it is the target's own runtime on a CPU of its kind, so that speed and memory are measured.
    """

    command: tuple[str, ...]
    on: str
    is_device: bool

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises Unsupported with what the runtime said, Unavailable where it takes too long."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        try:
            made = subprocess.run(
                self.command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"a session of {self.on} took longer than {TIMEOUT_S} s") from None
        if made.returncode:
            said = " ".join((made.stderr.strip() or made.stdout.strip() or "nothing").split())[-SAID:]
            ended = "by an illegal instruction" if made.returncode in (-4, 132) else f"with {made.returncode}"
            raise Unsupported(f"{self.on} ended {ended}: {said}")
        return json.loads(made.stdout)


def native() -> Place:
    """This machine."""
    return Place((sys.executable, str(PROGRAM)), f"onnxruntime on {cpu_name()}, 1 thread", True)


def place_for(settings: Settings, target: str, arm64: Path | None = None) -> Place:
    """Where a target's sessions run here: for phones and another CPU the same operators natively, so not as a device.

    ``arm64``: a folder with usr/bin/python3.11 and site/ for arm64, to run under qemu.
    """
    where = TARGETS[target].checked_by
    if where == "node":
        modules = node_modules(settings)
        on = f"{TARGETS[target].runtime.name} in node on {cpu_name()}, 1 thread"
        return Place((str(node()), str(WEB_PROGRAM), str(modules)), on, True)
    here = native()
    if where == "native":
        return Place(here.command, here.on, platform.machine() == "x86_64")
    if platform.machine() in ("aarch64", "arm64"):
        return Place(here.command, here.on, target == "linux-arm64")
    return emulated_arm64(arm64) if arm64 else Place(here.command, here.on, False)


def emulated_arm64(root: Path) -> Place:
    """A Cortex-A72, a Raspberry Pi 4's, under qemu: illegal instructions are found, speed and memory are not."""
    python, site = root / "usr" / "bin" / "python3.11", root / "site"
    if not python.exists() or not site.is_dir():
        raise NotFound(f"--arm64 {root}: it has no {python.relative_to(root)} or no site/", param="arm64")
    cpuinfo = root / "proc" / "cpuinfo"  # onnxruntime ends as it starts where it finds none of its own kind
    if not cpuinfo.exists():
        cpuinfo.parent.mkdir(exist_ok=True)
        write_file(cpuinfo, CORTEX_A72)
    started = ("-L", str(root), "-cpu", "cortex-a72", "-E", f"PYTHONPATH={site}", str(python), str(PROGRAM))
    return Place((*emulator("aarch64"), *started), "onnxruntime on arm64 (Cortex-A72) under qemu", False)


def emulated_x64() -> Place:
    """A CPU without AVX, of 2008, under qemu."""
    site = sysconfig.get_path("purelib")
    variables = ("-E", f"PYTHONPATH={site}", "-E", "OPENBLAS_CORETYPE=Nehalem")
    python = str(Path(sys.executable).resolve())
    return Place(
        (*emulator("x86_64"), "-cpu", "Nehalem", *variables, python, str(PROGRAM)),
        "onnxruntime on x86-64 without AVX2 (Nehalem) under qemu",
        False,
    )


def emulator(machine: str) -> tuple[str]:
    """Raises Unavailable where it is not installed."""
    if found := shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}"):
        return (found,)
    raise Unavailable(
        f"there is no qemu-{machine}-static on PATH; Debian's package qemu-user-static brings it"
    )


def cpu_name() -> str:
    """As Linux names it, or else the architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
