"""From the registry to a device and back: each lesson is compressed on its parent's scales, promoted, and published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.export import export
from compress.recipe import CompressRecipe
from deploy.updates.channel import open_channel
from deploy.updates.device.store import Followed, create
from deploy.updates.device.update import update
from everlearn.cli.commands import app
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.compress.quantize.test_kept_scales import lesson
from tests.deploy.updates.conftest import served
from tests.support.tiny_models import write_llama


@pytest.mark.slow
def test_a_lesson_and_a_rollback_of_the_registry_reach_a_device_as_small_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    settings, recipe = Settings(home=tmp_path / "home"), CompressRecipe(scales_from="parent", head_bits=4)
    registry = Registry(settings)
    (tmp_path / "tiny").mkdir()
    write_llama(tmp_path / "tiny")
    weights = import_model(settings, str(tmp_path / "tiny"), name="tiny")
    channel, keys = tmp_path / "channel", str(tmp_path / "keys")

    def everlearn(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["deploy", "channel", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    everlearn("init", str(channel), "--keys", keys)
    publish = ("publish", str(channel), "tiny@champion", "--target", "web", "--keys", keys, "--json")
    with served(channel) as url:
        root = (channel / "metadata" / "1.root.json").read_bytes()
        device, sizes, versions = None, list[int](), list[int]()
        for taught in (False, True):
            if taught:
                weights = lesson(registry, weights)
            registry.promote(export(settings, weights.ref, recipe).ref)
            said = json.loads(everlearn(*publish))
            device = device or create(
                tmp_path / "device", root, Followed(url=url, model="tiny", target="web")
            )
            updated = update(device)
            assert updated.version == said["version"] == registry.resolve("tiny@champion").version
            sizes.append(updated.received_bytes)
            versions.append(updated.version)
        assert device and sizes[1] < 0.5 * sizes[0], sizes
        monkeypatch.setattr("deploy.edge.build.build", None)  # it is there already, and is not built again
        registry.rollback("tiny")
        assert json.loads(everlearn(*publish))["version"] == versions[-2]
        back = update(device)
        assert (back.version, back.changed) == (versions[-2], True) and back.received_bytes < sizes[-1]
    held = open_channel(channel).versions("tiny", "web")
    assert [one.version for one in held] == versions


def test_a_version_without_an_edge_form_or_a_target_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLEARN_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny").mkdir()
    write_llama(tmp_path / "tiny")
    import_model(Settings(home=tmp_path / "home"), str(tmp_path / "tiny"), name="tiny")
    keys = ("--keys", str(tmp_path / "keys"))
    channel = str(tmp_path / "channel")
    CliRunner().invoke(app, ["deploy", "channel", "init", channel, *keys])
    for more, told in (((), "--target"), (("--target", "web"), "everlearn compress tiny --to int4-onnx")):
        done = CliRunner().invoke(app, ["deploy", "channel", "publish", channel, "tiny@1", *keys, *more])
        assert done.exit_code and told in " ".join(done.output.split()), done.output
