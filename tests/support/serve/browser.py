"""A real browser, for the tests of the pages."""

import re
import shutil
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script><a href='javascript:window.broken=1'>"
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]

Driver = Any
"""selenium.webdriver.Chrome, which is not installed everywhere."""


def check_no_inline_code(response: httpx.Response) -> None:
    """A page runs nothing but its own files, and loads nothing from elsewhere."""
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", response.text)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", response.text)


class Window:
    """A page in the browser."""

    def __init__(self, driver: Driver, url: str) -> None:
        self.driver = driver
        self.url = url

    def load(self, width: int = 1100, height: int = 800, scheme: str = "light") -> None:
        """As somebody who comes here for the first time, with nothing remembered."""
        self.resize(width, height, scheme)
        self.driver.get(self.url)
        self.script("sessionStorage.clear()")
        self.driver.get_log("browser")
        self.driver.get(self.url)

    def resize(self, width: int, height: int = 800, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def script(self, code: str) -> object:
        return self.driver.execute_script(code)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Read in one step, since the page changes between two."""
        found = self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())", selector
        )
        return list(found)

    def focused(self) -> str:
        return str(self.script("return document.activeElement.id"))

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
