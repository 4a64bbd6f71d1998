"""Settings whose registry holds a tiny decoder and a tiny encoder, and folders made of them; a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.edge.build import build
from everlearn.settings import Settings
from tests.deploy.edge.models import home_with_npm, register_decoder, register_encoder
from tests.support.serve.browser import CHROMIUM, DRIVER, FLAGS, Driver


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("tiny")
    settings = home_with_npm(folder / "home")
    register_decoder(settings, folder / "decoder")
    register_encoder(settings, folder / "encoder")
    return settings


@pytest.fixture(scope="session")
def web_folder(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder for web as int4-qdq; read it, and change nothing in it."""
    out = tmp_path_factory.mktemp("edge") / "web"
    build(tiny, "decoder", "web", out)
    return out


@pytest.fixture(scope="session")
def linux_folder(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder for linux-x64; read it, and change nothing in it."""
    out = tmp_path_factory.mktemp("edge") / "linux"
    build(tiny, "decoder", "linux-x64", out)
    return out


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One browser for a module: each server has a port of its own, so storage of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(240)
    yield driver
    driver.quit()
