"""Reading lock files and the installer, for the tests beside this file."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENTS = REPOSITORY / "requirements"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CPU_LOCKS = ("gateway", "serve", "demo", "vllm-cpu", "all")


def locked(name: str) -> dict[str, set[str]]:
    """Package → its pinned versions (several where they depend on the Python version)."""
    versions: dict[str, set[str]] = {}
    for line in (REQUIREMENTS / f"{name}.lock").read_text().splitlines():
        if pinned := re.match(r"([a-z0-9.-]+)==([^ ;]+)", line):
            versions.setdefault(pinned[1], set()).add(pinned[2])
    return versions


def pins(name: str) -> list[str]:
    """Each pinned requirement with its hashes, as one text."""
    text = (REQUIREMENTS / f"{name}.lock").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line[:1].isalnum()]


def wanted(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for with these extras, extras of ours followed."""
    found = [Requirement(text) for text in PROJECT["dependencies"]] if not extras else wanted()
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            found += wanted(*requirement.extras) if requirement.name == PROJECT["name"] else [requirement]
    return found


def is_cuda(package: str) -> bool:
    """Whether a package is of use on a GPU alone; nvidia-ml-py is the plain Python reader of driver figures that vLLM imports everywhere."""
    return package.startswith(("nvidia-", "triton", "cuda-")) and package != "nvidia-ml-py"


def installer() -> ModuleType:
    """requirements/install.py as a module."""
    spec = importlib.util.spec_from_file_location("install", REQUIREMENTS / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
