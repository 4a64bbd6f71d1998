"""The page's half of updates, in node: it takes what the publisher signed, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from deploy.edge.web.packages import node, node_modules
from deploy.edge.web.site import UPDATES, VENDOR, WEB
from deploy.updates.keys import ROLES, Keys
from deploy.updates.publisher import init, opened
from deploy.updates.release import takes_canary
from everlearn.errors import NotFound
from everlearn.settings import Settings
from tests.deploy.updates.bad_server import bad_server, busy, dripping
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.test_attacks import newest, of_longer_life, without_signature
from tests.deploy.updates.test_delta import made, written

CLIENT = Path(__file__).with_name("web_client.mjs")


@pytest.fixture(scope="session")
def module(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """everlearn_web as a page has it, less the runtime."""
    try:
        modules = node_modules(real_settings)
    except NotFound as error:
        pytest.skip(error.message)
    folder = tmp_path_factory.mktemp("web") / "everlearn_web"
    shutil.copytree(WEB / "everlearn_web", folder)
    shutil.copytree(UPDATES, folder / "updates")
    for name, source in VENDOR.items():
        if name.startswith(("noble", "fzstd")):
            (folder / "vendor" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(modules / source, folder / "vendor" / name)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


class Page:
    """A page that follows a channel, and remembers what it saw."""

    def __init__(self, module: Path, root: Path, state: Path) -> None:
        state.mkdir(exist_ok=True)
        command = [str(node()), str(CLIENT), str(module), str(root), str(state)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def page(module: Path, template: Path, tmp_path: Path) -> Iterator[Page]:
    page = Page(module, template / "channel" / "metadata" / "1.root.json", tmp_path / "state")
    yield page
    page.process.terminate()
    page.process.wait()


def test_a_page_follows_publications_rotations_and_rollbacks(
    published: Published, page: Page, edge_folders: dict[int, Path]
) -> None:
    first = page.ask(url=published.url)["result"]
    assert first == {
        "targets": ["tiny/linux-x64/champion.json", "tiny/linux-x64/versions.json"],
        "version": 2,
        "root": 1,
    }
    published.publish(edge_folders[3])
    assert page.ask(url=published.url)["result"]["version"] == 3
    for role in ROLES:
        published.change(lambda publisher, role=role: publisher.repository.rotate(role))
        assert "result" in page.ask(url=published.url)
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64"))
    assert page.ask(url=published.url)["result"] | {"targets": None} == {
        "targets": None,
        "version": 2,
        "root": 5,
    }


def test_a_page_refuses_what_was_changed_is_older_has_expired_or_is_signed_by_others(
    published: Published, page: Page, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    channel, good = published.folder, tmp_path / "good"
    assert "result" in page.ask(url=published.url)
    older = shutil.copytree(channel, tmp_path / "older")
    published.publish(edge_folders[3])
    assert "result" in page.ask(url=published.url)
    shutil.copytree(channel, good)

    def put(folder: Path) -> None:
        shutil.rmtree(channel)
        shutil.copytree(folder, channel)

    def refused(code: str, *told: str) -> None:
        error = page.ask(url=published.url)["error"]
        assert error["code"] == code and any(one in error["message"] for one in told), error
        put(good)
        assert page.ask(url=published.url)["result"]["version"] == 3

    put(older)
    refused("corrupt", "older than")
    for role in ("timestamp", "snapshot", "targets"):
        for change in (without_signature, of_longer_life):
            published.publish(edge_folders[3])  # news: what was seen before is not read again
            shutil.rmtree(good)
            shutil.copytree(channel, good)
            file = newest(channel, role)
            raw = json.loads(file.read_bytes())
            change(raw)
            file.write_text(json.dumps(raw))
            refused("corrupt", "signatures", "not what was signed", "longer than")
    shutil.copy(newest(older, "snapshot"), newest(channel, "snapshot"))
    refused("corrupt", "not what was signed")
    for release in channel.glob("targets/tiny/linux-x64/*.champion.json"):
        release.write_bytes(release.read_bytes().replace(b'"version":3', b'"version":4'))
    refused("corrupt", "not what was signed")
    mine = Keys(tmp_path / "mine", tmp_path / "channel")
    init(tmp_path / "channel", mine)
    with opened(tmp_path / "channel", mine) as publisher:
        publisher.repository.rotate("root")
        publisher.publish(edge_folders[1])
    put(tmp_path / "channel")
    refused("corrupt", "has 0 of the 1 signatures")
    with opened(channel, published.keys, datetime.now(UTC) - timedelta(days=4)) as publisher:
        publisher.refresh()
    error = page.ask(url=published.url)["error"]
    assert error["code"] == "expired" and "holds back news" in error["message"]
    published.change(lambda publisher: publisher.refresh())
    assert page.ask(url=published.url)["result"]["version"] == 3
    assert page.ask(url="http://127.0.0.1:9")["error"]["code"] == "unavailable"


def test_a_page_that_comes_with_another_root_trusts_nothing_that_the_former_one_led_to(
    published: Published, page: Page, module: Path, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    published.change(lambda publisher: publisher.repository.rotate("root"))
    assert page.ask(url=published.url)["result"]["root"] == 2
    mine = Keys(tmp_path / "mine", tmp_path / "channel")
    init(tmp_path / "channel", mine)
    with opened(tmp_path / "channel", mine) as publisher:
        publisher.publish(edge_folders[1])
    former = shutil.copytree(published.folder, tmp_path / "former")
    shutil.rmtree(published.folder)
    shutil.copytree(tmp_path / "channel", published.folder)
    assert page.ask(url=published.url)["error"]["code"] == "corrupt", "the page still has its root"
    other = Page(module, tmp_path / "channel" / "metadata" / "1.root.json", tmp_path / "state")
    assert other.ask(url=published.url)["result"] | {"targets": None} == {
        "targets": None, "version": 1, "root": 1,
    }  # fmt: skip
    shutil.rmtree(published.folder)
    shutil.copytree(former, published.folder)
    said = other.ask(url=published.url)["error"]
    assert said["code"] == "corrupt" and "has 0 of the 1 signatures" in said["message"], said
    other.process.terminate()
    other.process.wait()


def test_a_page_waits_for_a_busy_server_and_leaves_one_that_is_slow(
    published: Published, page: Page, tmp_path: Path
) -> None:
    def silent(request: BaseHTTPRequestHandler, _: bytes) -> bool:
        time.sleep(4 if "timestamp" in request.path else 0)
        return False

    with bad_server(published.folder, busy({}, 2, 429, "0", "timestamp")) as url:
        assert page.ask(url=url)["result"]["version"] == 2
    for fault in (busy({}, 10, 429, "30", "timestamp"), dripping("timestamp", 4), silent):
        with bad_server(published.folder, fault) as url:
            said = page.ask(url=url, stallMs=500)
            assert said["error"]["code"] == "unavailable", said
    blob = max(published.folder.glob("blobs/*"), key=lambda one: one.stat().st_size)
    with bad_server(published.folder, busy(seen := {}, 1, 429, "2", "blobs")) as url:
        out = tmp_path / "blob"
        page.ask(blob=f"{url}/blobs/{blob.name}", bytes=blob.stat().st_size, out=str(out))
        first, second = next(iter(seen.values()))[:2]
    assert out.read_bytes() == blob.read_bytes() and second - first >= 2


def test_a_threshold_counts_each_key_once(
    module: Path, edge_folders: dict[int, Path], published: Published, tmp_path: Path
) -> None:
    shutil.rmtree(published.folder)
    media = [tmp_path / name for name in "ab"]
    keys = Keys(tmp_path / "keys", published.folder, media)
    init(published.folder, keys, threshold=2)
    with opened(published.folder, keys) as publisher:
        publisher.publish(edge_folders[1])
    root = published.folder / "metadata" / "1.root.json"
    raw = json.loads(root.read_bytes())
    for signatures in (raw["signatures"][:1], [raw["signatures"][0]] * 2):
        other = tmp_path / f"root-{len(signatures)}.json"
        other.write_text(json.dumps(raw | {"signatures": signatures}))
        page = Page(module, other, tmp_path / f"state-{len(signatures)}")
        assert "has 1 of the 2 signatures" in page.ask(url=published.url)["error"]["message"]
        page.process.terminate()
        page.process.wait()
    page = Page(module, root, tmp_path / "state")
    assert page.ask(url=published.url)["result"]["version"] == 1
    page.process.terminate()
    page.process.wait()


def test_a_page_makes_the_same_files_of_differences_and_throws_the_same_dice(
    page: Page, tmp_path: Path
) -> None:
    big = bytes(range(256)) * 40_000
    cases = [
        (
            [("a", b"x" * 100, 3), ("b", b"y" * 50, 0)],
            [("b", b"z" * 50, 7), ("a", b"x" * 99 + b"!", 1), ("c", b"new", 0)],
        ),
        ([("a", big, 5)], [("a", big[:5_000_000] + b"?" + big[5_000_001:], 2)]),
        ([], [("a", big[:999], 0)]),
        ([("a", b"1", 0)], []),
    ]
    for old, new in cases:
        base, target = tmp_path / "old", tmp_path / "new"
        base_tensors, tensors = written(base, old), written(target, new)
        delta = made(tmp_path, target, base, tensors, base_tensors)
        size = target.stat().st_size
        out = tmp_path / "out"
        said = page.ask(delta=str(delta), base=str(base), size=size, out=str(out))
        assert said["result"]["bytes"] == size and said["result"]["most"] <= 4 << 20
        assert out.read_bytes() == target.read_bytes()
        raw = bytearray(delta.read_bytes())
        for at in range(0, len(raw), max(1, len(raw) // 12)):
            changed = tmp_path / "changed"
            changed.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
            said = page.ask(delta=str(changed), base=str(base), size=size, out=str(out))
            assert said.get("error", {}).get("code") == "corrupt" or said["result"]["bytes"] == size, said
    draws = [(f"{n:032x}", f"{n % 7}", n * 997) for n in range(1000)]
    assert page.ask(canary=draws)["result"] == [takes_canary(*one) for one in draws]
