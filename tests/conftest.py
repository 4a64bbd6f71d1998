"""Fixtures every room's tests share: settings in an empty home, and one home with real models in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from everlearn.errors import NotFound
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.warm_children import Warm

pytest_plugins = ["tests.support.quick_collection", "tests.support.order", "tests.support.seconds"]

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_HOME = Path(os.environ.get("EVERLEARN_TEST_HOME") or REPOSITORY / ".cache" / "test-home")
MODELS = {"smollm2": "int4-onnx", "minilm": "int8-onnx"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever comes first makes the home, which takes minutes on a slow machine, and others wait for it."""
    for item in items:
        if "real_home" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def warm_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Children that compress begin with torch and transformers loaded, but for the first of each module: see there."""
    run = tmp_path_factory.getbasetemp()
    Warm.begun = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "begun-cold"
    Warm.begun.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everlearn.processes.child.subprocess", Warm)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose home is an empty folder of this test's own."""
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="session")
def real_home() -> Path:
    """A home that holds smollm2 (int4), minilm (int8), and smollm2's tensors as smollm2-vllm; kept between runs.

    Shared by every test of every run on this machine: read it, and change nothing in it.
    """
    TEST_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(TEST_HOME / "making.lock"):
        for model, recipe in MODELS.items():
            if not is_served(model):
                everlearn("import", model)
                everlearn("compress", model, "--to", recipe)
        registry = Registry(Settings(home=TEST_HOME))
        if "smollm2-vllm" not in {model.name for model in registry.list()}:
            tensors = registry.path(registry.resolve("smollm2@1"))
            everlearn("import", str(tensors), "--name", "smollm2-vllm")
    return TEST_HOME


@pytest.fixture(scope="session")
def real_settings(real_home: Path) -> Settings:
    """Settings whose home is `real_home`."""
    return Settings(home=real_home)


def is_served(model: str) -> bool:
    """Whether the test home has a champion of `model` that an engine can load."""
    try:
        return Registry(Settings(home=TEST_HOME)).resolve(f"{model}@champion").format in (
            "onnx-genai",
            "onnx",
        )
    except NotFound:
        return False


def everlearn(*arguments: str) -> None:
    """Run the program itself on the test home; its output shows when it fails."""
    made = subprocess.run(
        [sys.executable, "-m", "everlearn", *arguments],
        check=False,
        env={**os.environ, "EVERLEARN_HOME": str(TEST_HOME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert made.returncode == 0, f"everlearn {' '.join(arguments)}:\n{made.stdout}"
