"""What reaches a browser's storage: whole, as the manifest says, and without beginning again."""

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.edge.web.packages import node
from tests.deploy.edge.web.page_server import FaultyServer
from tests.support.serve.browser import IN_A_BROWSER, Driver
from tests.support.serve.supervised import eventually

pytestmark = IN_A_BROWSER

MEGABYTE = 1024 * 1024
SIZES = {"model.onnx": 100_000, "weights-000.bin": 9 * MEGABYTE, "weights-001.bin": 3 * MEGABYTE}

CALL = """
const [method, params, name, done] = arguments;
window.worker?.terminate();
window.worker = new Worker(`/everlearn_web/${name}`, {type: "module"});
window.events = [];
worker.onmessage = ({data}) => ("event" in data ? window.events.push(data.event) : done(data));
worker.onerror = (event) => done({error: {code: "worker", message: event.message}});
worker.postMessage({id: 1, method, params});
"""
KEPT = """
const done = arguments[arguments.length - 1];
(async () => {
  const found = [];
  for (const name of await caches.keys())
    for (const { url } of await (await caches.open(name)).keys()) found.push(new URL(url).pathname.slice(1));
  return found;
})().then(done);
"""
OPENED = """
const [version, done] = arguments;
(async () => {
const { openStorage } = await import("/everlearn_web/storage.js");
await (await openStorage("noise")).makeCurrent(version);
})().then(() => done(null), (error) => done(error.message));
"""
STORED = """
const done = arguments[arguments.length - 1];
const found = {};
async function walk(directory, path) {
  for await (const [name, handle] of directory.entries()) {
    if (handle.kind === "directory") await walk(handle, `${path}${name}/`);
    else found[path + name] = (await handle.getFile()).size;
  }
}
navigator.storage.getDirectory().then((root) => walk(root, "")).then(() => done(found), (error) => done(String(error)));
"""


def write_folder(directory: Path, version: int = 1, seed: int = 0, **said: Any) -> None:
    """A folder of random bytes, which no runtime could open and every browser can keep."""
    noise = np.random.default_rng(seed)
    files = []
    for path, size in SIZES.items():
        content = noise.bytes(size)
        (directory / path).write_bytes(content)
        files.append({"path": path, "bytes": size, "sha256": hashlib.sha256(content).hexdigest()})
    manifest = {
        "format": "everlearn-edge/1", "model": "noise", "version": version, "files": files, "bound": 0.1,
        "probes": [{"token_ids": [1], "top_ids": [1], "top_logits": [1.0]}],
    }  # fmt: skip
    (directory / "edge.json").write_text(json.dumps(manifest | said))


@pytest.fixture(scope="module")
def site(empty_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("noise") / "site"
    shutil.copytree(empty_site, directory, ignore=shutil.ignore_patterns("*.wasm"))
    write_folder(directory)
    return directory


@pytest.fixture
def server(site: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(site)
    with server.running():
        yield server


def fetch(driver: Driver, url: str, **params: Any) -> dict[str, Any]:
    """The worker's answer to `fetch`."""
    return driver.execute_async_script(CALL, "fetch", {"url": url, **params}, "worker.js")


def stored(driver: Driver) -> dict[str, int]:
    """Files of the model's versions, by name, and their sizes."""
    found = driver.execute_async_script(STORED)
    return {path.rpartition("/")[2]: size for path, size in found.items() if "/versions/" in path}


def test_a_broken_download_goes_on_where_it_broke(driver: Driver, server: FaultyServer) -> None:
    driver.get(server.url + "blank.html")
    server.faults.break_at["weights-000.bin"] = 6 * MEGABYTE
    broken = fetch(driver, server.url)
    assert broken["error"]["code"] == "unavailable" and "weights-000.bin" in broken["error"]["message"]
    assert "edge.json" not in stored(driver)
    kept = stored(driver)["weights-000.bin.part"]
    assert 4 * MEGABYTE < kept <= 6 * MEGABYTE

    server.faults.break_at.clear()
    server.faults.sent.clear()
    driver.get(server.url + "blank.html")  # as somebody who closed the page and comes back
    assert fetch(driver, server.url)["result"]["offline"] is False
    assert server.faults.sent["weights-000.bin"] == SIZES["weights-000.bin"] - kept
    assert "model.onnx" not in server.faults.sent
    sizes = stored(driver)
    assert {path: sizes[path] for path in SIZES} == SIZES and not any(
        path.endswith(".part") for path in sizes
    )


def test_a_server_that_falls_silent_is_unavailable(server: FaultyServer, site: Path) -> None:
    server.faults.silent_at = {"edge.json": 0, "weights-000.bin": 4 * MEGABYTE}
    said = {
        "module": str(site / "everlearn_web" / "download.js"),
        "url": server.url.replace("localhost", "127.0.0.1"),
        "bytes": SIZES["weights-000.bin"],
    }
    program = Path(__file__).with_name("stalls.mjs")
    run = subprocess.run(
        [node(), program], input=json.dumps(said), capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["manifest"]["code"] == "unavailable"
    end = found["file"]["end"]
    assert end["code"] == "unavailable" and f"byte {4 * MEGABYTE}" in end["message"], end
    assert found["file"]["came"] == 4 * MEGABYTE


def test_a_stored_model_opens_while_the_server_is_silent(driver: Driver, server: FaultyServer) -> None:
    driver.get(server.url + "blank.html")
    stored_here = fetch(driver, server.url)["result"]
    assert driver.execute_async_script(OPENED, stored_here["version"]) is None
    server.faults.silent_at["edge.json"] = 0
    found = fetch(driver, server.url, name="noise")
    assert found == {"id": 1, "result": {**stored_here, "offline": True, "notice": None}}


def test_the_page_keeps_no_file_of_another_build(driver: Driver, empty_site: Path) -> None:
    later = "everlearn_web/vendor/ort/ort.webgpu.js"
    server = FaultyServer(empty_site)
    server.faults.flip_at = {"everlearn_web/errors.js": 5, later: 5}  # as in the middle of an upload
    fetched = "const done = arguments[1]; fetch(arguments[0]).then(() => done('came'), () => done('refused'))"
    with server.running():
        driver.get(server.url)
        assert eventually(
            lambda: any("not of one build" in one["message"] for one in driver.get_log("browser"))
        )
        assert driver.execute_async_script(KEPT) == []
        del server.faults.flip_at["everlearn_web/errors.js"]
        driver.get(server.url + "index.html")
        eventually(lambda: driver.execute_script("return navigator.serviceWorker.controller !== null"))
        assert "everlearn_web/errors.js" in driver.execute_async_script(KEPT)
        assert driver.execute_async_script(fetched, f"/{later}") == "refused"
        server.faults.flip_at.clear()
        assert driver.execute_async_script(fetched, f"/{later}") == "came"
        assert later in driver.execute_async_script(KEPT)


def test_a_changed_byte_is_refused_and_nothing_of_the_file_is_kept(
    driver: Driver, server: FaultyServer
) -> None:
    driver.get(server.url + "blank.html")
    server.faults.flip_at["weights-000.bin"] = 5 * MEGABYTE
    refused = fetch(driver, server.url)["error"]
    assert refused["code"] == "corrupt" and "weights-000.bin is refused" in refused["message"]
    assert set(stored(driver)) == {"model.onnx"}
    server.faults.flip_at.clear()
    assert "result" in fetch(driver, server.url)


def test_a_page_closed_in_the_middle_leaves_nothing_that_counts(driver: Driver, server: FaultyServer) -> None:
    driver.get(server.url + "blank.html")
    server.faults.break_at["weights-000.bin"] = (
        6 * MEGABYTE
    )  # it tries again for seconds, and is closed meanwhile
    driver.execute_script(CALL.replace("done(data)", "0"), "fetch", {"url": server.url}, "worker.js", None)
    deadline = time.monotonic() + 30
    while "weights-000.bin.part" not in stored(driver) and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.get("about:blank")
    driver.get(server.url + "blank.html")
    assert "edge.json" not in stored(driver)
    server.faults.break_at.clear()
    assert "result" in fetch(driver, server.url)
    assert {path: stored(driver)[path] for path in SIZES} == SIZES


def test_a_server_without_ranges_serves_too(driver: Driver, server: FaultyServer) -> None:
    driver.get(server.url + "blank.html")
    server.faults.without_ranges = True
    server.faults.break_at["weights-000.bin"] = 5 * MEGABYTE
    assert fetch(driver, server.url)["error"]["code"] == "unavailable"
    server.faults.break_at.clear()
    assert "result" in fetch(driver, server.url)
    assert {path: stored(driver)[path] for path in SIZES} == SIZES


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"format": "everlearn-edge/9"}, "unsupported"),
        ({"files": [{"path": "../../evil", "bytes": 1, "sha256": "0" * 64}]}, "corrupt"),
        ({"files": [{"path": "model.onnx", "bytes": 10**15, "sha256": "0" * 64}]}, "corrupt"),
        ({"model": "../evil"}, "corrupt"),
    ],
)
def test_a_bad_manifest_is_refused_before_anything_is_fetched(
    driver: Driver, site: Path, tmp_path: Path, said: dict[str, Any], code: str
) -> None:
    directory = tmp_path / "bad"
    shutil.copytree(site, directory)
    write_folder(directory, **said)
    server = FaultyServer(directory)
    with server.running():
        driver.get(server.url + "blank.html")
        assert fetch(driver, server.url)["error"]["code"] == code
        assert not set(SIZES) & set(server.faults.sent)


def test_a_second_version_takes_from_the_first_what_has_not_changed(
    driver: Driver, site: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "changing"
    shutil.copytree(site, directory)
    server = FaultyServer(directory)
    with server.running():
        driver.get(server.url + "blank.html")
        assert "result" in fetch(driver, server.url)
        first = json.loads((directory / "edge.json").read_text())
        content = b"other" * 1000
        (directory / "model.onnx").write_bytes(content)
        first["files"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (directory / "edge.json").write_text(json.dumps(first | {"version": 2}))
        server.faults.sent.clear()
        assert fetch(driver, server.url)["result"]["version"].startswith("2-")
        assert server.faults.sent["model.onnx"] == len(content)
        assert not {"weights-000.bin", "weights-001.bin"} & set(server.faults.sent)
