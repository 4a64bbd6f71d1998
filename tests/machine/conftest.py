"""CPUs of other kinds, by qemu's user mode, and small bundles of each kind to run on them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.export import decoder_request
from compress.recipe import Calibration, CompressRecipe
from compress.targets import onnx_decoder, onnx_encoder
from everlearn.progress import silent
from tests.conftest import REPOSITORY, TEST_HOME
from tests.machine.arm64 import CPUINFO, NotFetched, arm64_root
from tests.support.tiny_models import write_bert, write_llama

RUN = Path(__file__).with_name("run_graphs.py")
TIMEOUT_S = 240


@dataclass(frozen=True)
class Machine:
    """A CPU that processes run on. ``cpu``: as qemu calls it; None is this one. ``flags``: those /proc/cpuinfo shows."""

    cpu: str | None
    names: tuple[str, ...]
    flags: str = ""
    variables: tuple[str, ...] = ()
    arm: bool = False


MACHINES = {
    "AVX2 without VNNI": Machine("Haswell", ("SSE4.2", "AVX2"), "sse4_2 avx avx2 fma"),
    # numpy's OpenBLAS would take this one for a CPU with AVX.
    "SSE4.2": Machine("Nehalem", ("SSE4.2",), "sse4_2", ("OPENBLAS_CORETYPE=Nehalem",)),
    "arm64": Machine("cortex-a72", ("NEON",), "asimd", arm=True),
    "arm64, dot product": Machine("neoverse-n1", ("NEON", "dot product"), "asimd asimddp", arm=True),
    # qemu 7.2 gets SME's products wrong.
    "arm64, i8mm": Machine(
        "max,sme=off,sve=off", ("NEON", "dot product", "i8mm", "BF16"), "asimd asimddp i8mm bf16", arm=True
    ),
}


@dataclass
class Case:
    """A graph that takes ``inputs``, as run_graphs.py has them."""

    name: str
    graph: Path
    inputs: dict[str, np.ndarray]
    exact: bool = True


@dataclass
class Answers:
    """What a machine made: of each case its rows, (rows, values), and what everlearn says of the machine."""

    rows: dict[str, np.ndarray]
    said: dict[str, Any]


def run(cases: list[Case], machine: Machine | None, folder: Path) -> Answers:
    """All ``cases`` in one process on ``machine``, None for this one. Skips where it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    for case in cases:
        inputs = folder / f"{case.name}.npz"
        np.savez(inputs, **case.inputs)
        listed.append(
            {"name": case.name, "graph": str(case.graph), "inputs": str(inputs), "exact": case.exact}
        )
    (folder / "cases.json").write_text(json.dumps(listed))
    result = folder / "result.npz"
    command = [*python_on(machine, folder), str(RUN), str(folder / "cases.json"), str(result)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    return Answers(dict(np.load(result)), json.loads(made.stdout))


def python_on(machine: Machine | None, folder: Path) -> list[str]:
    """The command that runs a Python with numpy, onnxruntime and this repository on ``machine``."""
    if machine is None or machine.cpu is None:
        return ["env", f"PYTHONPATH={REPOSITORY}", sys.executable]
    emulator = shutil.which(f"qemu-{'aarch64' if machine.arm else 'x86_64'}-static")
    if not emulator:
        pytest.skip("qemu-user-static is not installed")
    if machine.arm:
        try:
            root = arm64_root(TEST_HOME / "arm64")
        except NotFetched as why:
            pytest.skip(str(why))
        python, site = root / "usr" / "bin" / "python3.11", root / "site"
        shown = shown_as(machine, folder, root)
    else:
        if platform.machine() != "x86_64":
            pytest.skip("an x86 CPU is emulated for the Python that runs the tests, which is not x86's")
        python, site = Path(sys.executable).resolve(), Path(sysconfig.get_path("purelib"))
        shown = shown_as(machine, folder)
    said = [f"PYTHONPATH={REPOSITORY}:{site}", "OMP_NUM_THREADS=1", *machine.variables]
    return [
        emulator,
        "-L",
        str(shown),
        "-cpu",
        machine.cpu,
        *(part for one in said for part in ("-E", one)),
        str(python),
    ]


def shown_as(machine: Machine, folder: Path, root: Path | None = None) -> Path:
    """A root whose /proc/cpuinfo is the machine's: what qemu finds there goes before the host's own files."""
    shown = folder / "root"
    (shown / "proc").mkdir(parents=True, exist_ok=True)
    said = CPUINFO.format(features=machine.flags) if machine.arm else f"flags\t: {machine.flags}\n"
    (shown / "proc" / "cpuinfo").write_text(said)
    for one in root.iterdir() if root else ():
        if one.name != "proc" and not (shown / one.name).exists():
            os.symlink(one, shown / one.name)
    return shown


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with an exported tiny model each, made as ``everlearn compress`` makes them."""
    parents = {"decoder": tmp_path_factory.mktemp("llama"), "encoder": tmp_path_factory.mktemp("bert")}
    write_llama(parents["decoder"])
    write_bert(parents["encoder"])
    calibration = Calibration(tokens=1024)
    made: dict[str, Path] = {}
    for name, recipe in {
        "int4": CompressRecipe(to="int4-onnx"),
        "int8": CompressRecipe(to="int8-onnx"),
        "int8-kv": CompressRecipe(to="int8-onnx", kv_cache="int8", calibration=calibration),
    }.items():
        made[name] = tmp_path_factory.mktemp(name)
        onnx_decoder.build_onnx_decoder(decoder_request(parents["decoder"], made[name], recipe, None), silent)
    for name, precision in {"encoder-int8": "int8", "encoder-fp32": "fp32"}.items():
        made[name] = tmp_path_factory.mktemp(name)
        request = {
            "model_dir": str(parents["encoder"]),
            "directory": str(made[name]),
            "task": "embed",
            "precision": precision,
            "calibration": calibration.model_dump(mode="json"),
        }
        onnx_encoder.build_onnx_encoder(request, silent)
    return made
