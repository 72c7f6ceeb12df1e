"""Browser pages that record console errors and requests to other hosts."""

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page
from seeds import SeededServer


class StrictBrowser:
    """Browser contexts that collect all errors."""

    def __init__(self, browser: Browser, seeded: SeededServer) -> None:
        self._browser = browser
        self._seeded = seeded
        self._open: list[BrowserContext] = []
        self.errors: list[str] = []

    def page(self, seeded: SeededServer | None = None, *, logged_in: bool = True, **options: Any) -> Page:
        """A new page in its own context."""
        server = seeded or self._seeded
        url = server.url
        context = self._browser.new_context(base_url=url, **options)
        self._open.append(context)
        if logged_in:
            context.request.get(server.address.login_link())
        page = context.new_page()
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda problem: self.errors.append(str(problem)))
        page.on("request", lambda request: self._check(request.url, url))
        return page

    def _check(self, requested: str, url: str) -> None:
        if not requested.startswith((f"{url}/", "data:", "blob:")):
            self.errors.append(f"a request to {requested}")

    def close(self) -> None:
        for context in self._open:
            context.close()
