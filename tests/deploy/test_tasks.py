"""Models that are neither decoders nor plain encoders, from the registry to a device: folders, runner, page, updates."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.edge.build import build
from deploy.edge.check.check import check
from deploy.edge.manifest import HeadGraph, HeadProbe, read_manifest
from deploy.edge.probes import Differs
from everlearn.bundles.tasks import HEADED, Task
from everlearn.settings import Settings
from tests.conftest import TEST_HOME
from tests.deploy.edge.models import register_encoder
from tests.deploy.native.conftest import changed, running

TEXTS = ["Rates rose again in March.", "The mill stands by the river, where it always stood.", "Rain."]
QUERY = "Where is the mill?"
Folder = Callable[[Task, str], Path]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with a version of each task, by its name."""
    folder = tmp_path_factory.mktemp("tasks")
    settings = Settings(home=folder / "home")
    packages = TEST_HOME / "cache" / "npm"
    packages.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.symlink(packages, settings.directory("cache") / "npm")
    for task in HEADED:
        register_encoder(settings, folder / task, task)
    return settings


@pytest.fixture(scope="module")
def folder_of(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders by task and target, each made once; read them, and change nothing in them."""
    root = tmp_path_factory.mktemp("folders")

    def made(task: Task, target: str) -> Path:
        out = root / target / task
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            build(settings, task, target, out)
        return out

    return made


@pytest.mark.parametrize("task", HEADED)
def test_a_folder_has_the_labels_and_logits_that_a_device_must_reproduce(
    folder_of: Folder, task: Task
) -> None:
    made = read_manifest(folder_of(task, "linux-x64"))
    assert made.task == task and made.form == "int8-dynamic" and isinstance(made.graph, HeadGraph)
    assert made.graph.context == 128
    if task == "classify":
        assert made.graph.labels == ["sport", "politics", "weather"]
    for probe in made.probes:
        assert isinstance(probe, HeadProbe) and len(probe.type_ids) == len(probe.token_ids)
        assert (1 in probe.type_ids) == (task in ("score", "question_answer"))
        assert (
            len(probe.logits) == {"classify": 3, "score": 1, "token_classify": 8, "question_answer": 16}[task]
        )


def test_other_logits_and_labels_are_refused(settings: Settings, folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of("classify", "linux-x64")
    assert check(settings, folder).sessions[0].difference < 0.01
    probes = [one.model_dump() for one in read_manifest(folder).probes]
    probes[-1]["logits"][2] += 0.2
    other = changed(folder, tmp_path / "other", probes=probes)
    with pytest.raises(Differs, match="must not serve this folder"):
        check(settings, other)


def test_the_runner_classifies_as_the_gateway_does(folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of("classify", "linux-x64")
    with running(folder, "--threads", 1, log=tmp_path / "log") as runner:
        root = str(runner.client.base_url).removesuffix("/v1/")
        said = runner.client.post(f"{root}/classify", json={"model": "classify", "input": TEXTS}).json()
        named = runner.client.post(f"{root}/models/classify", json={"inputs": TEXTS[0]}).json()
        refused = runner.client.post(f"{root}/score", json={"text_1": "a", "text_2": "b"})
    assert [one["index"] for one in said["data"]] == [0, 1, 2] and said["usage"]["prompt_tokens"] > 10
    for one in said["data"]:
        assert sum(one["probs"]) == pytest.approx(1, abs=1e-5) and one["num_classes"] == 3
        assert one["label"] == ["sport", "politics", "weather"][one["probs"].index(max(one["probs"]))]
    assert named[0][0]["label"] == said["data"][0]["label"] and len(named[0]) == 3
    assert refused.status_code == 404 and "it offers /classify, /models/classify" in refused.text
