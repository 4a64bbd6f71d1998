"""Makes the runner: one file with everlearn's server and what it imports, for one platform and one Python.

The file is a pex (https://docs.pex-tool.org): a zip that Python runs, and that unpacks itself on its first start. Its
wheels are those of ``requirements.txt`` beside this module, pinned by hash, for whatever platform this is made on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.tags import compatible_tags, cpython_tags

from everlearn.bundles.durable import sync_tree
from everlearn.errors import ConfigError, Conflict, InvalidInput, Unavailable
from everlearn.progress import Progress, silent

PINS = Path(__file__).with_name("requirements.txt")
REQUIREMENTS = (
    "annotated-types",
    "anyascii",
    "cffi",
    "click",
    "cryptography",
    "filelock",
    "flatbuffers",
    "h11",
    "httptools",
    "jinja2",
    "jiter",
    "llguidance",
    "markdown-it-py",
    "markupsafe",
    "mdurl",
    "ml-dtypes",
    "numpy",
    "onnx",
    "onnxruntime",
    "orjson",
    "packaging",
    "prometheus-client",
    "protobuf",
    "psutil",
    "pycparser",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "pygments",
    "python-dotenv",
    "pyyaml",
    "rich",
    "securesystemslib",
    "structlog",
    "tokenizers",
    "tuf",
    "typing-extensions",
    "typing-inspection",
    "urllib3",
    "uvicorn",
    "uvloop",
    "zstandard",
)
EXCLUDED = ("huggingface-hub",)
"""tokenizers downloads with it; the runner loads what is there."""
ENTRY = "deploy.edge.native.__main__:main"
SOURCES = ("everlearn", "serve", "deploy")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "web", "pages", "android", "ios", "react-native")
OLDEST_GLIBC, NEWEST_GLIBC = 17, 36
"""Wheels for glibc 2.17 to 2.36 (Debian 12, Raspberry Pi OS of 2023) are taken."""
TIMEOUT_S = 1800


MACHINES = {"linux-x64": "x86_64", "linux-arm64": "aarch64"}
"""Platforms, as uname and wheels call them."""


def pack(platform: str, python: str, out: Path, progress: Progress = silent) -> int:
    """Writes the runner to ``out`` and returns its size in bytes; it is there whole, or not at all.

    Raises Conflict where ``out`` is taken, ConfigError without pex, Unavailable where a wheel cannot be had.
    """
    out = out.absolute()
    if not out.parent.is_dir():
        raise InvalidInput(f"--out {out}: {out.parent} is no folder", param="out")
    if out.exists() or out.is_symlink():
        raise Conflict(f"--out {out} is there already: remove it, or name another file", param="out")
    if find_spec("pex") is None:
        raise ConfigError("making a runner takes pex: pip install pex")
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as staging:
        made = Path(staging) / out.name
        copy_sources(Path(staging) / "sources")
        description = Path(staging) / "platform.json"
        description.write_text(json.dumps(describe_platform(MACHINES[platform], python)))
        progress("collecting the wheels and writing the file", None)
        run_pex(pex_command(Path(staging) / "sources", description, made), Path(staging))
        made.chmod(0o755)
        sync_tree(made.parent)
        os.rename(made, out)
    return out.stat().st_size


def copy_sources(target: Path) -> None:
    """The packages of everlearn that the server needs, wherever they are imported from."""
    for name in SOURCES:
        spec = find_spec(name)
        assert spec and spec.submodule_search_locations
        shutil.copytree(spec.submodule_search_locations[0], target / name, ignore=LEFT_OUT)


def describe_platform(machine: str, python: str) -> dict[str, object]:
    """The interpreter and the wheels that it takes, as pex reads them (``--complete-platform``)."""
    version = (int(python.split(".")[0]), int(python.split(".")[1]))
    tag = f"cp{version[0]}{version[1]}"
    glibcs = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    platforms = [*glibcs, f"manylinux2014_{machine}", f"linux_{machine}"]
    tags = [*cpython_tags(version, platforms=platforms), *compatible_tags(version, tag, platforms)]
    return {
        "marker_environment": {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": "linux",
        },
        "compatible_tags": [str(one) for one in tags],
    }


def pex_command(sources: Path, description: Path, made: Path) -> list[str]:
    """``--venv``: it unpacks to a virtual environment, whose interpreter its servers are started with."""
    command = [sys.executable, "-m", "pex", "--requirement", str(PINS), "--intransitive", "--no-build"]
    command += [part for name in EXCLUDED for part in ("--exclude", name)]
    command += ["--complete-platform", str(description), "--use-pip-config", "--pip-version", "vendored"]
    command += ["--venv", "--no-emit-warnings", "--sources-directory", str(sources), "--entry-point", ENTRY]
    return [*command, "--python-shebang", "/usr/bin/env python3", "--output-file", str(made)]


def run_pex(command: list[str], folder: Path) -> None:
    """Raises Unavailable with the end of what pex said."""
    log = folder / "pex.log"
    with log.open("wb") as stream:
        try:
            code = subprocess.run(
                command,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pex took longer than {TIMEOUT_S} s") from None
    if code:
        said = log.read_text(errors="replace").strip()[-1500:]
        raise Unavailable(f"pex ended with {code}; the end of what it said:\n{said}")
