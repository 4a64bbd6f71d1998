"""The API's page in a real browser, from a real gateway: every route is there, and one can be tried."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key
from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually, supervised

pytest.importorskip("selenium.webdriver", reason="the page is tested with selenium")

from tests.support.serve.browser import IN_A_BROWSER, Driver, Window

pytestmark = IN_A_BROWSER
CHAT = "#post-v1-chat-completions"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("docs") / "home")
    add_model(settings, "tiny")
    return settings


@pytest.fixture(scope="module")
def server(home: Settings) -> Iterator[Supervised]:
    with supervised(Path(home.home), "tiny") as running:
        yield running.ready()


@pytest.fixture
def page(server: Supervised, browser: Driver) -> Window:
    window = Window(browser, f"{server.url}/docs")
    window.load()
    eventually(lambda: window.all(".route"))
    return window


def test_every_route_is_listed_with_its_fields(page: Window, server: Supervised) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    routes = sum(len(operations) for operations in document["paths"].values())
    assert len(page.all(".route")) == len(page.all("nav a")) == routes
    names = {text.split()[0] for text in page.texts(f"{CHAT} > .fields > tbody > tr > td:first-child")}
    assert names == set(document["components"]["schemas"]["ChatRequest"]["properties"])
    page.one(f"{CHAT} summary").click()
    eventually(lambda: page.all(f"{CHAT} details .fields"))
    assert page.problems() == []


def test_a_request_is_tried_and_its_answer_shown(page: Window, server: Supervised, home: Settings) -> None:
    button = page.one(f"{CHAT} .try button")
    page.script(f"document.querySelector('{CHAT} .try').scrollIntoView()")
    assert '"model": "tiny"' in str(page.script(f"return document.querySelector('{CHAT} textarea').value"))
    button.click()
    eventually(lambda: "chat.completion" in page.texts(f"{CHAT} .try pre")[0])
    assert page.texts(f"{CHAT} .try pre")[0].startswith("200")

    secret, _ = create_key(open_database(home), "docs")
    eventually(lambda: httpx.get(f"{server.url}/v1/models").status_code == 401)
    button.click()
    eventually(lambda: page.texts(f"{CHAT} .try pre")[0].startswith("401"))
    page.one("#api-key").send_keys(secret)
    button.click()
    eventually(lambda: page.texts(f"{CHAT} .try pre")[0].startswith("200"))


def test_it_fits_a_telephone_and_is_linked_from_the_other_pages(page: Window, server: Supervised) -> None:
    page.resize(390)
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    for other in ("", "console"):
        assert 'href="docs"' in httpx.get(f"{server.url}/{other}").text
