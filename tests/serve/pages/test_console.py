"""The console in a real browser, before a real supervisor with its real gateway; the engines are the tests' own."""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, insert, update

from everlearn.registry.audit import list_acts
from everlearn.registry.database import open_database, write
from everlearn.registry.keys import create_key, list_keys, open_door, revoke_key
from everlearn.registry.registry import Registry
from everlearn.registry.tables import JobEventRow, JobRow, ReplicaRow
from everlearn.settings import Settings
from serve import replicas
from tests.support.serve.supervised import Supervised, add_model, eventually, supervised

pytest.importorskip("selenium.webdriver", reason="the console is tested with selenium")
from selenium.webdriver.common.keys import Keys

from tests.support.serve.browser import HOSTILE, IN_A_BROWSER, Driver, Window, check_no_inline_code

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def settings_of_page(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`tiny` has a champion made of its first version; `weak` has two champions, one after the other."""
    settings = Settings(home=tmp_path_factory.mktemp("console") / "home")
    first = add_model(settings, "tiny", recipe={"import": {"kind": "gguf"}}, parameters=134_515_008)
    add_model(settings, "tiny", recipe={"export": {"to": "int4-onnx"}}, parent=first.digest)
    add_model(settings, "weak")
    add_model(settings, "weak", parameters=2)
    for ref in ("tiny@2", "weak@2"):
        Registry(settings).promote(ref)
    return settings


@pytest.fixture(scope="module")
def server(settings_of_page: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    misbehave = str(tmp_path_factory.mktemp("misbehave") / "file")
    options = {"FAKE_ENGINE_MISBEHAVE": misbehave, "EVERLEARN_SERVE__KEYS_CACHE_TTL_S": "0.2"}
    with supervised(settings_of_page.home, "tiny", "weak", **options) as running:
        running.misbehave = misbehave
        yield running.ready()


class Page(Window):
    """What an administrator sees and does."""

    def open(self, width: int = 1100, height: int = 800, scheme: str = "light") -> "Page":
        self.load(width, height, scheme)
        eventually(lambda: self.texts("#pulse") != ["Loading"])
        return self

    def rows(self, section: str) -> list[list[str]]:
        """The cells of a table, read in one step."""
        code = "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map((row) => [...row.cells].map((c) => c.innerText.trim()))"
        return list(self.driver.execute_script(code, section))

    def row(self, section: str, word: str) -> list[str]:
        """The one row whose first cell begins with a word; an empty one while there is none."""
        return next((row for row in self.rows(section) if row[0].startswith(word)), [""] * 9)

    def button(self, label: str) -> Any:
        return self.one(f'button[aria-label="{label}"]')

    def tile(self, title: str) -> str:
        return next(text for text in self.texts(".tile") if text.startswith(title))


@pytest.fixture
def page(server: Supervised, browser: Driver) -> Page:
    return Page(browser, f"{server.url}/console").open()


def test_models_with_their_lineage_and_engines_are_shown_without_complaints(page: Page) -> None:
    version = page.row("models", "@2")
    assert version[1].split() == ["champion", "serving"]
    assert version[2:5] == ["export int4-onnx", "@1", "onnx-genai generate"]
    origin = page.row("models", "@1")
    assert origin[1:4] == ["previous", "import gguf", "none"] and origin[6] == "134.5M"
    engine = page.row("engines", "tiny@2")
    assert engine[1] == "ready" and engine[3] == "0" and engine[4] == "2048"
    assert re.fullmatch(r"onnx pid \d+", engine[2])
    assert page.texts("#jobs .empty") == ["No job yet."] and page.texts("#batches .empty") == [
        "No batch yet."
    ]
    assert page.problems() == []


def test_the_figures_are_what_the_histograms_say(page: Page, server: Supervised) -> None:
    def state() -> Any:
        return httpx.get(f"{server.url}/console/state").json()["traffic"]

    def median(before: Any, after: Any) -> float:
        """As Prometheus computes it."""
        low = below = 0.0
        counts = [
            (float(bound), new - old)
            for (bound, new), (_, old) in zip(after, before or [(0, 0)] * 99, strict=False)
        ]
        for upper, count in counts:
            if count >= counts[-1][1] / 2:
                return low + (upper - low) * (counts[-1][1] / 2 - below) / (count - below)
            low, below = upper, count
        raise AssertionError

    before = state()
    for _ in range(3):
        server.ask("one two three four five six seven eight", stream=True)
    server.ask("hello", "nobody")
    after = state()
    eventually(lambda: "404: 1" in page.tile("Requests") and "200: 3" in page.tile("Requests"))
    assert "\n4 " in page.tile("Requests")
    for title, metric in (("Time to first token", "first_token"), ("Between two tokens", "inter_token")):
        seconds = median(before[metric].get("tiny"), after[metric]["tiny"])
        shown, unit = re.search(r"\n([\d.]+) (m?s)", page.tile(title)).groups()
        assert float(shown) * (1e-3 if unit == "ms" else 1) == pytest.approx(seconds, rel=0.06)
    assert float(re.search(r"\n([\d.]+)", page.tile("Tokens per second"))[1]) > 0
    assert page.all(".spark .first")
    page.one("#of").send_keys("weak")
    assert "\n0 " in page.tile("Requests")


def test_a_killed_engine_comes_back_on_the_page(page: Page, server: Supervised) -> None:
    pid = re.search(r"\d+", page.row("engines", "tiny")[2])[0]
    os.kill(int(pid), signal.SIGKILL)
    eventually(
        lambda: page.row("engines", "tiny")[1] == "ready" and pid not in page.row("engines", "tiny")[2]
    )


def test_an_engine_that_was_given_up_shows_why_and_a_promotion_mends_it(
    page: Page, server: Supervised, settings_of_page: Settings
) -> None:
    with open(f"{server.misbehave}-2", "w") as file:
        file.write("1 the weights are gone")
    os.kill(int(re.search(r"\d+", page.row("engines", "weak@2")[2])[0]), signal.SIGKILL)
    eventually(lambda: page.row("engines", "weak@2")[1].startswith("failed"), within_s=40)
    assert "the weights are gone" in page.row("engines", "weak@2")[1]
    eventually(lambda: page.row("engines", "weak@1")[1] == "ready")

    page.button("Roll back weak@1").click()
    assert page.one("#ask").is_displayed() and "weak@1" in page.one("#ask-title").text
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)  # on "Leave it"
    assert not page.one("#ask").is_displayed()
    assert Registry(settings_of_page).aliases("weak")["champion"] == 2

    page.button("Roll back weak@1").send_keys(Keys.ENTER)
    page.one("#yes").send_keys(Keys.ENTER)
    eventually(lambda: page.row("acts", "promote")[1] == "weak@1")
    assert Registry(settings_of_page).aliases("weak") == {"champion": 1, "previous": 2}
    act = list_acts(open_database(settings_of_page))[0]
    assert (act.act, act.subject, act.actor) == ("promote", "weak@1", "without a key")
    assert page.problems() == []


def test_a_server_that_is_away_is_told_and_its_return_is_seen(page: Page) -> None:
    def network(offline: bool) -> None:
        page.driver.execute_cdp_cmd("Network.enable", {})
        unlimited = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", unlimited | {"offline": offline})

    network(offline=True)
    try:
        eventually(lambda: "cannot be reached" in page.one("#away").text)
        assert page.texts("#pulse") == ["Not connected"]
        assert page.row("models", "@2")[1].startswith("champion"), "what was seen last stays"
    finally:
        network(offline=False)
    eventually(lambda: page.texts("#pulse") == ["Live"])
    assert not page.one("#away").is_displayed()


def test_a_gateway_that_starts_anew_counts_from_nought(page: Page, server: Supervised) -> None:
    for _ in range(5):
        server.ask("hello", "nobody")
    page.open()
    server.ask("hello", "nobody")
    eventually(lambda: "404: 1" in page.tile("Requests"))
    server.child("serve.gateway").kill()
    eventually(lambda: "404" not in page.tile("Requests") and page.texts("#pulse") == ["Live"])
    for _ in range(2):
        server.ask("hello", "nobody")
    eventually(lambda: "404: 2" in page.tile("Requests"))


def test_a_job_shows_what_it_lost_from_the_champion_and_from_the_best(
    page: Page, settings_of_page: Settings
) -> None:
    kept = [
        {"domain": "tales", "forgetting": 0.035, "measured": True, "best": {"forgetting": 0.07}},
        {"domain": "old", "forgetting": -0.1, "measured": False, "best": {"forgetting": None}},
    ]
    told = {"outcome": "refused", "gates": {"float": {"gain": {"mean": 0.5}, "kept": kept}}}
    job = {
        "id": "ftjob-best", "model": "tiny", "state": "failed", "recipe": {"domain": "news"}, "seed": 1,
        "training_file": "file-1", "request": {}, "progress": {}, "report": told,
    }  # fmt: skip
    with write(open_database(settings_of_page)) as connection:
        connection.execute(insert(JobRow).values(job))
    eventually(lambda: page.row("jobs", "ftjob-best")[3].startswith("refused"))
    assert page.row("jobs", "ftjob-best")[3] == (
        "refused, gain 0.500, forgetting 0.035, from the best 0.070, not measured: old"
    )
    with write(open_database(settings_of_page)) as connection:
        connection.execute(delete(JobRow).where(JobRow.id == "ftjob-best"))


def test_a_job_is_paused_and_goes_on_again(page: Page, settings_of_page: Settings) -> None:
    database = open_database(settings_of_page)
    job = {
        "id": "ftjob-wait", "model": "tiny", "state": "paused", "pause_requested_at": 1.0, "seed": 1,
        "recipe": {"domain": "news"}, "training_file": "file-1", "request": {}, "progress": {},
    }  # fmt: skip
    with write(database) as connection:
        connection.execute(insert(JobRow).values(job))
    eventually(lambda: page.row("jobs", "ftjob-wait")[2] == "paused")
    assert page.row("jobs", "ftjob-wait")[5].split() == ["Resume", "Cancel"]
    running = {"state": "running", "progress": {"done": 0.4, "step": "training"}}
    with write(database) as connection:
        connection.execute(update(JobRow).where(JobRow.id == "ftjob-wait").values(running))
    eventually(lambda: page.row("jobs", "ftjob-wait")[2].startswith("pausing"))
    for does, wanted in (("Resume", "running"), ("Pause", "pausing")):
        page.button(f"{does} ftjob-wait").click()
        page.one("#yes").click()
        eventually(lambda wanted=wanted: page.row("jobs", "ftjob-wait")[2].startswith(wanted))
    assert page.problems() == []
    with write(database) as connection:
        connection.execute(delete(JobEventRow).where(JobEventRow.job_id == "ftjob-wait"))
        connection.execute(delete(JobRow).where(JobRow.id == "ftjob-wait"))


def test_hostile_names_and_errors_stay_text(page: Page, settings_of_page: Settings) -> None:
    """The registry and the keys refuse most of these; the page must not rely on it."""
    db = open_database(settings_of_page)
    replicas.announce(
        db, id="rep-hostile", model=HOSTILE[:64], version=1, digest="0" * 64, kind="<b>onnx", task="generate", url="",
        pid=None, state="failed", error=HOSTILE + "\n" + "unbroken" * 40,
    )  # fmt: skip
    job = {
        "id": "ftjob-<i>1", "model": HOSTILE[:64], "state": "failed", "recipe": {"domain": HOSTILE}, "seed": 1,
        "training_file": "file-1", "request": {}, "progress": {}, "error": {"message": HOSTILE},
        "report": {"outcome": HOSTILE}, "result_model": HOSTILE,
    }  # fmt: skip
    with write(db) as connection:
        connection.execute(insert(JobRow).values(job))
    _, key = create_key(db, HOSTILE[:64])
    revoke_key(db, key.id)
    open_door(db)
    try:
        eventually(lambda: page.row("engines", "<img")[1].startswith("failed"))
        eventually(lambda: page.row("keys", "<img")[4] == "revoked")
        assert HOSTILE in page.row("engines", "<img")[1]
        assert page.row("jobs", "ftjob-<i>1")[3].count("<script>") == 3
        assert page.all("#board :is(img, script, a, b, i)") == []
        assert page.script("return window.broken") is None
        assert page.problems() == []
        for width in (320, 400, 768, 1024):
            page.resize(width)
            wider = page.script(
                "const edge = document.documentElement.clientWidth; return [document.documentElement,"
                " ...document.querySelectorAll('#board *')].filter((e) => e.checkVisibility() && !e.closest('thead')"
                " && Math.max(e.scrollWidth, e.getBoundingClientRect().right) > edge + 1).map((e) => e.outerHTML)"
            )
            assert wider == [], width
    finally:
        with write(db) as connection:
            connection.execute(JobRow.__table__.delete())
            connection.execute(ReplicaRow.__table__.delete().where(ReplicaRow.id == "rep-hostile"))


def test_only_an_administrators_key_opens_it(
    page: Page, server: Supervised, settings_of_page: Settings
) -> None:
    db = open_database(settings_of_page)
    plain, _ = create_key(db, "plain", ["tiny"], requests_per_minute=60)
    admin, own = create_key(db, "admin", admin=True)
    try:
        eventually(lambda: page.one("#door").is_displayed())
        assert page.focused() == "api-key" and not page.one("#board").is_displayed()
        for secret, told in (("el-wrong", "Incorrect API key"), (plain, "not an administrator's")):
            page.one("#api-key").clear()
            page.one("#api-key").send_keys(secret, Keys.ENTER)
            eventually(lambda told=told: told in page.one("#refusal").text)
            assert not page.one("#board").is_displayed()
        page.one("#api-key").clear()
        page.one("#api-key").send_keys(admin, Keys.ENTER)
        eventually(lambda: page.row("keys", "plain")[4] == "active")
        assert page.row("keys", "plain")[1:4] == [plain[:9] + "…", "tiny", "60 requests/min"]
        assert page.row("keys", "admin")[0].split() == ["admin", "admin", "this", "one"]
        assert page.all('button[aria-label="Revoke admin"]') == []
        assert page.script("return localStorage.length") == 0

        page.button("Revoke plain").click()
        page.one("#yes").click()
        eventually(lambda: page.row("keys", "plain")[4] == "revoked")
        assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {admin}"}).is_success
        act = list_acts(db)[0]
        assert (act.act, act.actor, act.detail) == ("key.revoke", own.id, {"name": "plain"})

        page.one("#forget").click()
        eventually(lambda: page.one("#door").is_displayed())
        assert page.script("return sessionStorage.length") == 0
        assert admin not in str(page.script("return document.documentElement.outerHTML"))
    finally:
        for key in list_keys(db):
            revoke_key(db, key.id)
        open_door(db)
        eventually(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)


def test_it_can_be_used_by_keyboard_while_it_refreshes_itself(page: Page) -> None:
    eventually(lambda: page.all("#models button"))
    nameless = page.script(
        "return [...document.querySelectorAll('input, select, button, a')].filter((e) => e.checkVisibility() &&"
        " !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert page.script("return [...document.querySelectorAll('th')].every((e) => e.scope && e.textContent)")
    label = page.one("#models button").get_attribute("aria-label")
    reached = set()
    for _ in range(10):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.script("return document.activeElement.getAttribute('aria-label')"))
    assert label in reached
    page.button(label).send_keys("")
    seen = page.rows("engines")
    eventually(lambda: page.rows("engines") != seen)  # the engines' ages
    assert page.script("return document.activeElement.getAttribute('aria-label')") == label
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.one("#ask").is_displayed()
    assert page.script("return document.activeElement.getAttribute('aria-label')") == label


def test_it_is_light_or_dark_as_the_person_likes(page: Page) -> None:
    def brightness() -> int:
        colour = str(page.script("return getComputedStyle(document.body).backgroundColor"))
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness() > 600
    page.resize(1100, scheme="dark")
    assert brightness() < 150


def test_the_page_allows_no_inline_code_and_is_small(server: Supervised) -> None:
    response = httpx.get(f"{server.url}/console")
    check_no_inline_code(response)
    script = "".join(httpx.get(f"{server.url}/{name}.js").text for name in ("console", "console_elements"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    style = httpx.get(f"{server.url}/console.css").text
    assert len(response.text) + len(script) + len(style) < 60_000
