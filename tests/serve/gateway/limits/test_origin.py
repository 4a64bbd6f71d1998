"""Without a key: only this machine is answered, and no page of another site changes anything through its browser."""

import socket
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi.routing import APIRoute

from everlearn.errors import ConfigError
from everlearn.registry.keys import create_key
from everlearn.settings import Settings, load_settings
from serve.gateway.app import create_app
from serve.gateway.limits.origin import HARMLESS
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until

OWN_NAMES = [
    "localhost:1234", "LOCALHOST:8000", "LocalHost", "localhost.", "localhost.:8000", "127.0.0.1", "127.0.0.1:80",
    "127.8.9.10", "[::1]:8000", "[::1]", "[0:0:0:0:0:0:0:1]", "app.localhost", "App.LocalHost.:9",
]  # fmt: skip
FOREIGN_NAMES = [
    "evil.example", "[::1].evil.com", "[::1]evil.com:8000", "[::1]:8000.evil.com", "[::2]", "[::1", "::1", "127.0.0.1.evil.com",
    "localhost.evil.com", "localhost:8000@evil.com", "notlocalhost", "evil.com#.localhost", "evil.com/.localhost",
    "localhost:evil", "0.0.0.0", "10.0.0.1", "127.0.0.1:8000, evil.com", "local host", "localhost..",
]  # fmt: skip
FOREIGN_PAGES: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "null"},
    {"origin": "file://"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://localhost.evil.example:{port}"},
    {"origin": "http://[::1].evil.com"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://localhost:{port}"},  # the request goes to 127.0.0.1
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
    {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "cross-site"},
    {"origin": ""},
]


def headers(given: dict[str, str], gateway: RunningGateway) -> dict[str, str]:
    return {name: value.replace("{port}", str(gateway.port)) for name, value in given.items()}


@pytest.mark.parametrize("host", OWN_NAMES)
def test_this_machine_is_known_by_all_its_names(gateway: RunningGateway, host: str) -> None:
    assert gateway.client.get("/v1/models", headers={"host": host}).status_code == 200
    assert gateway.client.get("/metrics", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN_NAMES)
def test_a_foreign_host_name_is_refused(gateway: RunningGateway, host: str) -> None:
    for path in ("/v1/models", "/console/state", "/metrics"):
        refused = gateway.client.get(path, headers={"host": host})
        assert refused.status_code == 403, path
        assert "localhost" in refused.json()["error"]["message"]


def test_a_second_host_name_is_refused(gateway: RunningGateway) -> None:
    lines = ["host: localhost", "host: evil.example"]
    for both in (lines, lines[::-1]):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
            head = ["GET /v1/models HTTP/1.1", *both, "", ""]
            connection.sendall("\r\n".join(head).encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 403")


def changing_routes(home: Path) -> list[tuple[str, str]]:
    """Every route of the app, the pages' own included, that is asked otherwise than by GET."""
    routes = [route for route in create_app(Settings(home=home)).routes if isinstance(route, APIRoute)]
    found = [(method, route.path) for route in routes for method in route.methods - HARMLESS]
    assert ("POST", "/v1/files") in found
    assert ("POST", "/console/acts") in found
    assert len(found) >= 15
    return found


def test_a_page_of_another_site_changes_nothing_by_any_route(gateway: RunningGateway, tmp_path: Path) -> None:
    for method, path in changing_routes(tmp_path):
        for given in FOREIGN_PAGES:
            refused = gateway.client.request(method, path, headers=headers(given, gateway), json={})
            assert refused.status_code == 403, (method, path, given, refused.text)
        own = gateway.client.request(method, path, headers={"origin": gateway.url}, json={})
        assert own.status_code not in (403, 405), (method, path)


def test_an_upload_from_another_site_is_refused_before_it_is_read(gateway: RunningGateway) -> None:
    def upload(**sent: str) -> httpx2.Response:
        form = {"purpose": "batch"}
        return gateway.client.post("/v1/files", data=form, files={"file": ("a.jsonl", b"{}")}, headers=sent)

    assert upload(origin="https://evil.example").status_code == 403
    assert gateway.client.get("/v1/files").json()["data"] == []
    assert upload(origin=gateway.url).status_code == 200


def test_the_servers_own_pages_and_clients_that_are_no_browser_may_act(gateway: RunningGateway) -> None:
    origin = {"origin": f"http://127.0.0.1:{gateway.port}"}
    for sent in ({}, origin, origin | {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        answer = gateway.client.post("/v1/chat/completions", json=chat_body(), headers=sent)
        assert answer.status_code == 200, sent
    named = {"host": "LocalHost:8000", "origin": "http://localhost:8000"}
    assert gateway.client.post("/v1/chat/completions", json=chat_body(), headers=named).status_code == 200


def test_without_the_setting_no_other_page_may_read(gateway: RunningGateway) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert gateway.client.options("/v1/chat/completions", headers=asked).status_code == 405
    assert not allowed(gateway.client.get("/v1/models", headers={"origin": "https://app.example"}))


def allowed(response: httpx2.Response) -> str | None:
    return response.headers.get("access-control-allow-origin")


@pytest.fixture(scope="module")
def shared_with_pages(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway(cors_origins=["https://app.example", "tauri://localhost"])
    gateway.add_engine("m")
    return gateway


def test_listed_origins_may_use_the_api_also_before_there_is_a_key(shared_with_pages: RunningGateway) -> None:
    client = shared_with_pages.client
    for origin in ("https://app.example", "tauri://localhost"):
        page = {"origin": origin, "sec-fetch-site": "cross-site"}
        asked = page | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        preflight = client.options("/v1/chat/completions", headers=asked)
        assert (preflight.status_code, allowed(preflight)) == (200, origin)
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        answer = client.post("/v1/chat/completions", json=chat_body(), headers=page)
        assert (answer.status_code, allowed(answer)) == (200, origin)
        assert answer.headers["access-control-expose-headers"] == "*"
        refused = client.post("/v1/chat/completions", json={}, headers=page)  # a page may read why
        assert (refused.status_code, allowed(refused)) == (400, origin)


def test_other_origins_stay_foreign(shared_with_pages: RunningGateway) -> None:
    for origin in (
        "https://evil.example",
        "https://app.example:444",
        "http://app.example",
        "https://x.app.example",
    ):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert not allowed(shared_with_pages.client.options("/v1/chat/completions", headers=asked))
        answer = shared_with_pages.client.post(
            "/v1/chat/completions", json=chat_body(), headers={"origin": origin}
        )
        assert (answer.status_code, allowed(answer)) == (403, None)


def test_a_preflight_is_answered_before_the_key_is_asked_for_and_all_origins_need_one(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(cors_origins=["*"])
    gateway.add_engine("m")
    page = {"origin": "https://any.example"}
    assert gateway.client.post("/v1/chat/completions", json=chat_body(), headers=page).status_code == 403
    for path in ("/v1/models", "/v1/files", "/console/state", "/metrics"):
        assert gateway.client.get(path).status_code == 200
        assert gateway.client.get(path, headers=page).status_code == 403, path
    secret, _ = create_key(gateway.db, "page")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is required")
    asked = page | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    assert gateway.client.options("/v1/chat/completions", headers=asked).status_code == 200
    with_key = page | {"authorization": f"Bearer {secret}"}
    answer = gateway.client.post("/v1/chat/completions", json=chat_body(), headers=with_key)
    assert (answer.status_code, allowed(answer)) == (200, "*")
    assert gateway.client.get("/metrics").status_code == 200
    assert gateway.client.get("/metrics", headers=page).status_code == 401
    assert gateway.client.get("/metrics", headers={"host": "evil.example"}).status_code == 401


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://App.example", "https://a b", ""]
)
def test_what_is_no_origin_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("EVERLEARN_SERVE__CORS_ORIGINS", f'["{origin}"]')
    with pytest.raises(ConfigError, match="cors_origins"):
        load_settings()
