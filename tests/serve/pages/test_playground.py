"""The playground in a real browser: the real page from the real gateway; the engine says what a test needs."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key, open_door, revoke_key
from everlearn.settings import Settings
from serve import replicas
from tests.support.serve.supervised import Supervised, add_model, eventually, supervised

pytest.importorskip("selenium.webdriver", reason="the playground is tested with selenium")
from selenium.webdriver.common.keys import Keys

from tests.support.serve.browser import HOSTILE, IN_A_BROWSER, Driver, Window, check_no_inline_code

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def settings_of_page(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("playground") / "home")
    add_model(settings, "tiny")
    return settings


@pytest.fixture(scope="module")
def server(settings_of_page: Settings) -> Iterator[Supervised]:
    with supervised(settings_of_page.home, "tiny") as running:
        yield running.ready()


class Page(Window):
    """What a person sees and does."""

    def open(self, width: int = 1100, height: int = 800, scheme: str = "light") -> "Page":
        self.load(width, height, scheme)
        eventually(lambda: "Loading" not in self.one("#model").text)
        return self

    def write(self, text: str) -> None:
        self.one("#prompt").send_keys(text, Keys.ENTER)

    def ask(self, text: str) -> str:
        """Send a message and wait for the end of its answer; the text of that."""
        before = len(self.all(".answer"))
        self.write(text)
        eventually(lambda: len(self.all(".answer")) > before and not self.all(".working"))
        return self.texts(".answer .text")[-1]


@pytest.fixture
def page(server: Supervised, browser: Driver) -> Page:
    return Page(browser, f"{server.url}/").open()


def test_it_loads_without_complaints_and_offers_the_models(page: Page) -> None:
    assert page.problems() == []
    assert page.one("#model").text.strip() == "tiny"
    assert page.focused() == "prompt"


def test_an_answer_streams_in_with_its_speed(page: Page) -> None:
    page.write("/slow one two three")
    eventually(lambda: page.texts(".working .text") in (["one"], ["one two"]))
    eventually(lambda: not page.all(".working"))
    assert page.texts(".answer .text") == ["one two three"]
    assert re.fullmatch(r"[\d.]+ tok/s", page.one(".speed").text)
    assert re.fullmatch(r"first token in [\d.]+ m?s", page.one(".wait").text)
    assert page.one(".count").text == "3 tokens"


def test_what_is_set_is_what_is_asked(page: Page) -> None:
    page.one("#toggle-settings").click()
    page.one("#system").send_keys("Be brief.")
    page.script(
        "const t = document.getElementById('temperature'); t.value = 1.3; t.dispatchEvent(new Event('input'))"
    )
    page.one("#max-tokens").clear()
    page.one("#max-tokens").send_keys("77")
    page.ask("hello")
    body = json.loads(page.ask("/body"))
    assert [(m["role"], m["content"].strip()) for m in body["messages"]] == [
        ("system", "Be brief."), ("user", "hello"), ("assistant", "hello"), ("user", "/body"),
    ]  # fmt: skip
    assert body["temperature"] == 1.3 and body["max_completion_tokens"] == 77
    assert page.one("#temperature-value").text == "1.3"


def test_shift_enter_adds_a_line_and_enter_sends(page: Page) -> None:
    page.one("#prompt").send_keys("first", Keys.SHIFT + Keys.ENTER + Keys.NULL, "second")
    assert page.all(".user") == []
    page.one("#prompt").send_keys(Keys.ENTER)
    eventually(lambda: page.all(".user"))
    assert page.one(".user").text == "first\nsecond"
    assert page.one("#prompt").get_attribute("value") == ""


def test_enter_sends_no_empty_message(page: Page) -> None:
    page.write("   ")
    assert page.all(".user") == []


@pytest.mark.parametrize("how", ["escape", "button"])
def test_a_running_answer_can_be_stopped(page: Page, how: str) -> None:
    page.write("/slow " + "word " * 50)
    eventually(lambda: page.texts(".working .text p"))
    if how == "escape":
        page.one("#prompt").send_keys(Keys.ESCAPE)
    else:
        page.one("#stop").click()
    eventually(lambda: not page.all(".working"), within_s=2)
    assert page.one(".note").text == "stopped"
    assert page.ask("go on") == "go on"


def test_try_again_replaces_the_last_answer(page: Page) -> None:
    page.ask("one")
    page.ask("two")
    page.all(".tools button")[-1].click()
    eventually(lambda: not page.all(".working") and len(page.all(".answer")) == 2)
    body = json.loads(page.ask("/body"))
    assert [m["content"].strip() for m in body["messages"]] == ["one", "one", "two", "two", "/body"]


def test_a_new_chat_forgets_the_old_one(page: Page) -> None:
    page.ask("remember this")
    page.write("/slow " + "word " * 50)
    eventually(lambda: page.all(".working .text p"))
    page.one("#new-chat").click()
    assert page.all(".answer") == [] and page.one("#welcome").is_displayed()
    assert [m["content"] for m in json.loads(page.ask("/body"))["messages"]] == ["/body"]


def test_an_idea_is_asked_with_one_click(page: Page) -> None:
    page.one("#ideas button").click()
    eventually(lambda: page.all(".answer") and not page.all(".working"))
    assert "France" in page.one(".user").text


def test_markdown_becomes_blocks(page: Page) -> None:
    said = "A **bold** `word`:\n\n1. one\n2. two\n\n- dot\n\n```python\nif a < b:\n    print('<b>')\n```\nEnd *as is*."
    page.ask("/say " + json.dumps(said))
    assert page.one(".text strong").text == "bold" and page.one(".text p code").text == "word"
    assert [item.text for item in page.all(".text ol li")] == ["one", "two"]
    assert [item.text for item in page.all(".text ul li")] == ["dot"]
    assert page.one(".block code").text == "if a < b:\n    print('<b>')"
    assert page.one(".block-head span").text == "python"
    assert page.all(".text p")[-1].text == "End *as is*."


def test_script_in_an_answer_stays_text(page: Page) -> None:
    said = f"{HOSTILE}\n\n# {HOSTILE}\n- **{HOSTILE}**\n- `{HOSTILE}`\n```{HOSTILE}\n{HOSTILE}\n```"
    shown = page.ask("/say " + json.dumps(said))
    assert shown.count("<script>") >= 5
    assert page.all(".answer img, .answer script, .answer a") == []
    assert page.script("return window.broken") is None
    assert page.problems() == []


def test_script_in_a_question_stays_text(page: Page) -> None:
    page.ask(HOSTILE)
    assert page.one(".user").text == HOSTILE
    assert page.script("return window.broken") is None


def test_script_in_a_models_name_stays_text(
    page: Page, server: Supervised, settings_of_page: Settings
) -> None:
    """The registry refuses such names; the page must not rely on it."""
    db = open_database(settings_of_page)
    [real] = [row for row in replicas.ready_replicas(db) if row.model == "tiny"]
    replicas.announce(
        db, id="rep-hostile", model=HOSTILE[:64], version=1, digest="0" * 64, kind="onnx", task="generate",
        url=real.url, pid=os.getpid(),
    )  # fmt: skip
    replicas.heartbeat(db, "rep-hostile")
    try:
        eventually(lambda: len(httpx.get(f"{server.url}/v1/models").json()["data"]) == 2)
        page.open()
        names = [option.text for option in page.all("#model option")]
        assert HOSTILE[:64] in names
        page.all("#model option")[names.index(HOSTILE[:64])].click()
        page.ask("hello")
        assert page.script("return window.broken") is None
        assert page.all("#log img, #log script, #model img") == []
    finally:
        replicas.withdraw(db, "rep-hostile")


def test_the_page_allows_no_inline_code(server: Supervised) -> None:
    check_no_inline_code(httpx.get(f"{server.url}/"))


def test_a_broken_answer_is_told_and_the_next_works(page: Page, server: Supervised) -> None:
    page.ask("/crash one two three four")
    problem = page.one(".problem")
    assert problem.get_attribute("role") == "alert" and "broke off" in problem.text
    assert page.texts(".answer .text") == ["one two"]
    assert eventually(server.answers)
    assert page.ask("hello again") == "hello again"


def test_a_refused_request_says_what_is_wrong(page: Page) -> None:
    page.one("#toggle-settings").click()
    page.one("#max-tokens").clear()
    page.one("#max-tokens").send_keys("99999999999")
    page.ask("hello")
    assert "max_completion_tokens" in page.one(".problem").text


def test_a_server_that_needs_a_key_is_told_and_the_key_is_forgotten_with_the_tab(
    page: Page, settings_of_page: Settings
) -> None:
    db = open_database(settings_of_page)
    secret, key = create_key(db, "browser")
    try:
        eventually(lambda: httpx.get(f"{page.url}v1/models").status_code == 401)
        page.open()
        eventually(lambda: page.focused() == "api-key")
        assert "API key" in page.one("#welcome-text").text
        page.one("#api-key").send_keys(secret, Keys.TAB)
        eventually(lambda: page.one("#model").text.strip() == "tiny")
        assert page.ask("hello") == "hello"
        assert page.script("return localStorage.length") == 0
        assert secret in str(page.script("return JSON.stringify(sessionStorage)"))
        assert page.one("#api-key").get_attribute("type") == "password"
    finally:
        revoke_key(db, key.id)
        open_door(db)
        eventually(lambda: httpx.get(f"{page.url}v1/models").status_code == 200)


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page: Page) -> None:
    page.one("#toggle-settings").click()
    page.one("#prompt").send_keys("x")
    nameless = page.script(
        "return [...document.querySelectorAll('input, textarea, select, button')].filter((e) => !e.hidden &&"
        " !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    reached = set()
    for _ in range(25):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.focused())
    wanted = {
        "model",
        "new-chat",
        "toggle-settings",
        "prompt",
        "send",
        "system",
        "temperature",
        "max-tokens",
        "api-key",
    }
    assert wanted <= reached
    page.one("#system").send_keys(Keys.ESCAPE)
    assert not page.one("#settings").is_displayed() and page.focused() == "toggle-settings"


def test_a_screen_reader_hears_whole_answers(page: Page) -> None:
    log = page.one("#log")
    assert log.get_attribute("role") == "log" and log.get_attribute("aria-live") == "polite"
    page.write("/slow one two")
    eventually(lambda: page.all(".working"))
    assert log.get_attribute("aria-busy") == "true"
    eventually(lambda: not page.all(".working"))
    assert log.get_attribute("aria-busy") == "false"
    assert page.one("#status").get_attribute("textContent") == "Answer complete"


@pytest.mark.parametrize("width", [320, 375, 768, 1440])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.open(width=width, height=640)
    page.ask("/say " + json.dumps("```\n" + "x" * 300 + "\n```\n" + "unbroken" * 40))
    for _ in range(2):
        assert page.script("return document.documentElement.scrollWidth") == width
        assert page.one("#send").is_displayed()
        page.one("#toggle-settings").click()


def test_it_is_light_or_dark_as_the_person_likes(page: Page) -> None:
    def brightness() -> int:
        colour = str(page.script("return getComputedStyle(document.body).backgroundColor"))
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness() > 600
    page.open(scheme="dark")
    assert brightness() < 150


def test_the_page_is_small(server: Supervised) -> None:
    files = ("", "playground.css", "playground.js", "playground_tasks.js")
    assert sum(len(httpx.get(f"{server.url}/{file}").content) for file in files) < 60_000


def test_the_files_ship_with_the_package() -> None:
    folder = Path(replicas.__file__).parent / "gateway" / "pages"
    assert {path.suffix for path in folder.glob("playground.*")} == {".html", ".css", ".js"}
