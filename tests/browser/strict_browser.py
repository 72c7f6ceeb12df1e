"""Pages of a real browser, strict_browser for console errors and requests to other hosts."""

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page
from seeds import SeededServer


class StrictBrowser:
    """Contexts of the browser of which every fault is noted."""

    def __init__(self, browser: Browser, seeded: SeededServer) -> None:
        self._browser = browser
        self._site = seeded
        self._open: list[BrowserContext] = []
        self.faults: list[str] = []

    def page(self, seeded: SeededServer | None = None, **options: Any) -> Page:
        """A new page in a context of its own."""
        url = (seeded or self._site).url
        context = self._browser.new_context(base_url=url, **options)
        self._open.append(context)
        page = context.new_page()
        page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda problem: self.faults.append(str(problem)))
        page.on("request", lambda request: self._check(request.url, url))
        return page

    def _check(self, asked: str, url: str) -> None:
        if not asked.startswith((f"{url}/", "data:", "blob:")):
            self.faults.append(f"a request to {asked}")

    def close(self) -> None:
        for context in self._open:
            context.close()
