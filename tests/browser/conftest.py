"""A real browser and a real server. A console error or a request to another host fails the test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright
from seeds import SeededServer
from strict_browser import StrictBrowser

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server

CHROMIUM = Path(os.environ.get("KTO_SWEEP_CHROMIUM", "/usr/bin/chromium"))
REQUIRED = os.environ.get("KTO_SWEEP_BROWSER_TESTS") == "required"
"""Set where tests must fail, not skip, without a browser."""
ARGUMENTS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    if not CHROMIUM.exists() and not REQUIRED:
        pytest.skip(f"{CHROMIUM} not found: apt-get install chromium, or set KTO_SWEEP_CHROMIUM")
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeededServer]:
    home = Home(tmp_path_factory.mktemp("server") / "home")
    server = SeededServer(ensure_server(home))
    yield server
    server.close()
    stop_server(home)


@pytest.fixture
def strict_browser(browser: Browser, seeded: SeededServer) -> Iterator[StrictBrowser]:
    strict = StrictBrowser(browser, seeded)
    yield strict
    strict.close()
    assert strict.errors == []


@pytest.fixture
def page(strict_browser: StrictBrowser) -> Page:
    """A logged-in desktop page."""
    return strict_browser.page(viewport={"width": 1360, "height": 900})
