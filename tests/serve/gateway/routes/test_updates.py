"""The gateway hands out the channel's files: in parts, unchanged ones not again, nothing beside them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from serve.gateway.routes import updates
from tests.serve.gateway.conftest import RunningGateway

RELEASE = {"format": "everlearn-release/1", "version": 7}
BLOB = bytes(range(256)) * 1000
LARGE = "b" * 64


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "channel"
    for name, content in (
        ("metadata/timestamp.json", b"{}"),
        ("metadata/1.root.json", b"{}"),
        (f"targets/tiny/web/{'a' * 64}.champion.json", json.dumps(RELEASE).encode()),
        (f"blobs/{hashlib.sha256(BLOB).hexdigest()}", BLOB),
        ("blobs/.unfinished", b"secret"),
        ("notes.txt", b"secret"),
        ("../beside.json", b"secret"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with (folder / "blobs" / LARGE).open("wb") as file:
        file.truncate(32 << 20)
    (folder / "metadata" / "link.json").symlink_to(folder.parent / "beside.json")
    return folder


@pytest.fixture(scope="module")
def updating(channel: Path, start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    set_here = {"EVERLEARN_UPDATES__FOLDER": str(channel), "EVERLEARN_UPDATES__COUNT": "true"}
    os.environ.update(set_here)
    try:
        return start_gateway()
    finally:
        for name in set_here:
            del os.environ[name]


def test_a_file_is_sent_whole_in_parts_or_not_again(updating: RunningGateway) -> None:
    url = f"/v1/updates/blobs/{hashlib.sha256(BLOB).hexdigest()}"
    whole = updating.client.get(url)
    assert whole.content == BLOB and "immutable" in whole.headers["cache-control"]
    rest = updating.client.get(url, headers={"range": "bytes=100000-"})
    assert (rest.status_code, rest.content) == (206, BLOB[100000:])
    assert rest.headers["content-range"] == f"bytes 100000-{len(BLOB) - 1}/{len(BLOB)}"
    assert updating.client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    stale = updating.client.get(url, headers={"range": "bytes=100000-", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, BLOB)
    head = updating.client.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(BLOB)), b"")
    assert updating.client.get(url, headers={"range": f"bytes={len(BLOB)}-"}).status_code == 416
    assert updating.client.get("/v1/updates/metadata/timestamp.json").headers["cache-control"] == "no-cache"


OUTSIDE = (
    "notes.txt", "../beside.json", "metadata/../../beside.json", "metadata/%2e%2e/%2e%2e/beside.json",
    "metadata/link.json", "blobs/.unfinished", "blobs", "", "metadata", "/etc/passwd", "metadata//timestamp.json",
    "metadata/nothing.json", f"blobs/{'0' * 64}", "metadata/timestamp.json%00", f"metadata/{'a' * 3000}.json",
    "metadata%5ctimestamp.json",
)  # fmt: skip


def test_nothing_but_the_channels_own_files_is_sent(updating: RunningGateway) -> None:
    for path in OUTSIDE:
        connection = HTTPConnection("127.0.0.1", updating.port, timeout=20)
        connection.request("GET", f"/v1/updates/{path}")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status in (400, 404) and b"secret" not in body and b"root:" not in body, path


def test_versions_are_counted_without_who_got_them(updating: RunningGateway) -> None:
    name = 'everlearn_updates_total{alias="champion",model="tiny",target="web",version="7"}'
    before = updating.metric(name)
    for _ in range(3):
        assert updating.client.get(f"/v1/updates/targets/tiny/web/{'a' * 64}.champion.json").json() == RELEASE
    assert updating.metric(name) == before + 3


def ask_for_the_large_blob(port: int, client: str) -> tuple[socket.socket, bytes]:
    """A connection that has read only the status of its answer, and that status."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.bind((client, 0))
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET /v1/updates/blobs/{LARGE} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return connection, connection.recv(12).removeprefix(b"HTTP/1.1 ")


def test_one_client_cannot_take_every_place(updating: RunningGateway) -> None:
    with ExitStack() as held:
        said = []
        for client in ("127.0.0.1",) * (updates.PER_CLIENT + 1) + ("127.0.0.2",):
            connection, status = ask_for_the_large_blob(updating.port, client)
            held.enter_context(connection)
            said.append(status)
    assert said == [b"200"] * updates.PER_CLIENT + [b"429", b"200"]


def test_a_reader_who_takes_nothing_is_broken_off(channel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "STALL_S", 0.1)
    taken: list[int] = []

    async def send(message: dict[str, object]) -> None:
        if len(taken) == 3:
            await asyncio.Event().wait()
        taken.append(len(bytes(message.get("body", b""))))  # type: ignore[arg-type]

    async def receive() -> dict[str, object]:
        return await asyncio.Future()

    async def sent() -> None:
        answer = updates.Bounded(FileResponse(channel / "blobs" / LARGE))
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "extensions": {}}
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(answer(scope, receive, send), 30)  # type: ignore[arg-type]

    asyncio.run(sent())
    assert taken == [0, 65536, 65536]


def test_there_is_no_such_route_unless_the_settings_name_a_channel(gateway: RunningGateway) -> None:
    assert gateway.client.get("/v1/updates/metadata/timestamp.json").json()["error"]["code"] == "unknown_url"
