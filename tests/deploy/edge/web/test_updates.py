"""The page follows a channel, in a real browser with the real SmolLM2: by few bytes, forward, back, and never to what is refused."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.updates.device.probes import computed
from deploy.updates.keys import Keys
from deploy.updates.publisher import init
from deploy.updates.publisher import opened as opened_channel
from tests.deploy.edge.web.page_server import FaultyServer
from tests.deploy.edge.web.test_page import script
from tests.support.serve.browser import IN_A_BROWSER, Driver

pytestmark = IN_A_BROWSER

TAUGHT = ("model.layers.28.", "model.layers.29.")
"""Layers that the lesson changes: a step in one of fifty of their weights."""
FOLLOW = """
  const { EverlearnWeb } = await import("/everlearn_web/index.js");
  const root = await (await fetch("/root.json")).arrayBuffer();
  const channel = { url: `${location.origin}/channel/`, model: "smollm2", root };
  window.client?.close();
  window.client = await EverlearnWeb.load("/model/", { channel, device: "DEVICE" });
  return { version: client.version, notice: client.notice };
"""
BACK = "return client.goBack().then((version) => ({ version }), ({ code }) => ({ code }))"
KEPT = """
  let folder = await navigator.storage.getDirectory();
  for (const name of ["everlearn", "smollm2", "versions"]) folder = await folder.getDirectoryHandle(name);
  return (await Array.fromAsync(folder.keys())).map((name) => Number(name.split("-")[0])).sort();
"""


def taught(site: Path, folder: Path, version: int) -> Path:
    """The site's edge folder after a lesson, with the logits that native onnxruntime computes of it."""
    manifest = json.loads((site / "edge.json").read_bytes())
    folder.mkdir()
    for file in manifest["files"]:
        shutil.copy(site / file["path"], folder / file["path"])
    rng = np.random.default_rng(version)
    for part, spans in manifest["tensors"].items():
        weights = np.fromfile(folder / part, np.uint8)
        for one in spans:
            if one["name"].startswith(TAUGHT) and one["name"].endswith(".codes"):
                weights[one["offset"] : one["offset"] + one["bytes"]] ^= (
                    rng.random(one["bytes"]) < 0.02
                ).astype(np.uint8)
        weights.tofile(folder / part)
    probes = [{"token_ids": one["token_ids"]} for one in manifest["probes"]]
    said = computed(folder, manifest | {"probes": probes})
    for probe, one in zip(manifest["probes"], said, strict=True):
        probe |= {"top_ids": one["ids"], "top_logits": [round(value, 5) for value in one["values"]]}
    for file in manifest["files"]:
        raw = (folder / file["path"]).read_bytes()
        file["sha256"] = hashlib.sha256(raw).hexdigest()
    manifest["version"] = version
    (folder / "edge.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    return folder


@pytest.fixture
def followed(smollm2_site: Path, tmp_path: Path) -> Iterator[tuple[FaultyServer, Path, Keys]]:
    """A page without a model beside it, and a channel that has the model."""
    site = tmp_path / "site"
    shutil.copytree(smollm2_site / "everlearn_web", site / "everlearn_web")
    shutil.copy(smollm2_site / "blank.html", site / "blank.html")
    keys = Keys(tmp_path / "keys", site / "channel")
    init(site / "channel", keys).publish(smollm2_site)
    shutil.copy(site / "channel" / "metadata" / "1.root.json", site / "root.json")
    server = FaultyServer(site)
    with server.running():
        yield server, site / "channel", keys


def test_a_page_follows_its_channel_by_few_bytes_refuses_what_is_older_and_goes_back(
    driver: Driver, followed: tuple[FaultyServer, Path, Keys], smollm2_site: Path, tmp_path: Path
) -> None:
    server, channel, keys = followed
    driver.get(f"{server.url}blank.html")

    def sent() -> int:
        return sum(count for path, count in server.faults.sent.items() if path.startswith("channel/"))

    def follow() -> tuple[dict[str, Any], int]:
        before = sent()
        said = script(driver, FOLLOW.replace("DEVICE", "wasm"))
        return said, sent() - before

    first, whole = follow()
    version = json.loads((smollm2_site / "edge.json").read_bytes())["version"]
    assert first == {"version": version, "notice": None} and whole > 50e6
    lesson = taught(smollm2_site, tmp_path / "lesson", 51)
    right = json.loads((lesson / "edge.json").read_bytes())
    wrong = {**right, "version": 50, "probes": [{**one, "top_logits": [9.0] * 8} for one in right["probes"]]}

    few = 0
    for manifest in (wrong, right):
        (lesson / "edge.json").write_text(json.dumps(manifest))
        older = shutil.copytree(channel, tmp_path / f"before-{manifest['version']}")
        with opened_channel(channel, keys) as publisher:
            publisher.publish(lesson)
        if manifest is right:
            sent_before = sent()
            said = script(driver, FOLLOW.replace("DEVICE", "webgpu"))
            assert "error" in said, "no GPU here, which refuses no version"
            few += sent() - sent_before
        said, came = follow()
        few += came
        if manifest is wrong:
            assert said["version"] == version and "was refused" in said["notice"], said
            assert script(driver, KEPT) == [version], "what was refused is gone"
            assert script(driver, BACK) == {"code": "not_found"}, "and is nothing to go back to"
    assert said == {"version": 51, "notice": None}
    assert 1e5 < few < 0.1 * whole

    shutil.move(channel, tmp_path / "newer")
    shutil.copytree(older, channel)
    said, _ = follow()
    assert said["version"] == 51 and "older than" in said["notice"], said
    shutil.rmtree(channel)
    shutil.move(tmp_path / "newer", channel)
    assert script(driver, BACK)["version"].startswith(f"{version}-")
    said, came = follow()
    assert said == {"version": version, "notice": None} and came < 20_000, (
        "the newer one is not fetched again"
    )
