"""A folder with an arm64 Python, numpy and onnxruntime, for qemu-aarch64: ``python -m tests.machine.arm64 FOLDER``.

Debian's packages are unpacked, not installed; the wheels are those that requirements/all.lock pins by hash. Both are
fetched once, within a few minutes, or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from filelock import FileLock

PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
)
WHEELS = ("numpy", "onnxruntime")
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 29)]
LOCK = Path(__file__).resolve().parents[2] / "requirements" / "all.lock"
FETCH_TIMEOUT_S = 180
CPUINFO = """processor\t: 0
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


class NotFetched(Exception):
    """What is missing, in a sentence."""


def arm64_root(folder: Path) -> Path:
    """``folder`` filled where it is not: usr/bin/python3.11, and site/ with the wheels. Raises NotFetched."""
    return python_root(folder, "arm64", WHEELS)


def python_root(folder: Path, architecture: str, wheels: tuple[str, ...] = ()) -> Path:
    """The same for an architecture of Debian's; ``wheels`` are arm64's."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    pinned = "\n".join(pinned_in(LOCK.read_text(), name) for name in wheels)
    holds = "\n".join((*PACKAGES, pinned))
    done = folder / "done"
    with FileLock(folder.with_suffix(".lock")):
        if done.is_file() and done.read_text() == holds:
            return folder
        shutil.rmtree(folder)
        folder.mkdir()
        unpack_packages(folder, architecture)
        if wheels:
            unpack_wheels(folder, pinned)
        describe_cpus(folder)
        done.write_text(holds)
    return folder


def pinned_in(lock: str, name: str) -> str:
    """The lines of ``name`` for Python 3.11."""
    found = re.search(rf"^{name}==[^\n]*\\\n(?: +--hash=[^\n]*\n)+", lock, re.MULTILINE)
    assert found, name
    return found.group().rstrip().removesuffix("\\")


def unpack_packages(root: Path, architecture: str) -> None:
    """Debian's packages, by an apt that keeps its lists and its notion of the machine in ``root``."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise NotFetched(f"that Python is made of Debian's packages, and {tool} is not here")
    apt = root / "apt"
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 20,
        "Acquire::Languages": "none",
    }
    (apt / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    fetch(["apt-get", "-q", "update"], environment, apt)
    fetch(["apt-get", "-q", "download", *PACKAGES], environment, apt / "debs")
    for package in (apt / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    shutil.rmtree(apt)


def unpack_wheels(root: Path, pinned: str) -> None:
    """The pinned wheels for arm64, in ``root``/site."""
    wheels = root / "wheels"
    wheels.mkdir()
    (wheels / "pinned.txt").write_text(pinned + "\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--python-version=3.11", "--implementation=cp", "-r", "pinned.txt"]
    fetch([*command, *(f"--platform={one}" for one in PLATFORMS)], dict(os.environ), wheels)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(root / "site")
    shutil.rmtree(wheels)


def describe_cpus(root: Path) -> None:
    """Files without which onnxruntime ends as it starts; of /proc/cpuinfo, the third, each run writes its own."""
    cpus = root / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n")


def fetch(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Runs ``command`` in ``folder``. Raises NotFetched."""
    try:
        made = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotFetched(f"{' '.join(command[:3])} took longer than {FETCH_TIMEOUT_S} s") from None
    if made.returncode:
        raise NotFetched(
            f"{' '.join(command[:3])} ended with {made.returncode}: {made.stdout[-300:].strip()}"
        )


if __name__ == "__main__":
    print(arm64_root(Path(sys.argv[1])))
