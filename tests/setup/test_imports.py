"""What the code imports is what pyproject.toml names, so that no host depends on another package's taste."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.locks import PROJECT, REPOSITORY, wanted

OURS = {"everlearn", "train", "compress", "serve", "continual", "deploy", "tests", "benchmarks"}
ELSEWHERE = {"pysword"}
"""What a benchmark brings itself."""
EXTRAS = {
    "serve/gateway": ["serve"],
    "serve": ["serve", "edge", "vllm", "tracing"],
    "everlearn": ["export", "serve", "vllm"],
    "train": ["train", "export"],
    "compress": ["compress", "vllm"],
    "continual": ["continual"],
    "tests": ["all", "dev", "vllm"],
    "benchmarks": ["all", "dev", "vllm"],
}


def imported(folder: Path) -> set[str]:
    """Top-level names of the third-party modules that the files of a folder import."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - OURS - ELSEWHERE - sys.stdlib_module_names


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder: str) -> None:
    declared = {canonicalize_name(each.name) for each in [*wanted(), *wanted(*EXTRAS[folder])]}
    modules = packages_distributions()
    for module in imported(REPOSITORY / folder):
        packages = {canonicalize_name(name).removesuffix("-cpu") for name in modules.get(module, [module])}
        known = packages & declared or module == "pydantic_core"  # pydantic's own other half
        assert known, f"{folder} imports {module} ({packages}), which {PROJECT['name']} does not name"
