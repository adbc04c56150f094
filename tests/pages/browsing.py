"""A real browser, and people who look at pages with it. Whatever a page complains of fails its test."""

import re
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, async_playwright, expect

#: How long a page may take to show what it should, ms.
PATIENCE_MS = 20_000
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}

expect.set_options(timeout=PATIENCE_MS)


def _chromium() -> str:
    """The distribution's browser; Playwright would download another one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("chromium is not installed: run make install")


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """A headless Chromium without a profile."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_chromium())
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Person:
    """Somebody with a browser window of their own, at one page."""

    page: Page
    context: BrowserContext
    #: Everything a page complained of.
    complaints: list[str] = field(default_factory=list)
    #: Idempotency-Keys in the order in which they were sent, and the statuses of the answers to them.
    keys: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @classmethod
    async def arrive(cls, browser: Browser, url: str, token: str | None = None, **settings: Any) -> Self:
        """Opens a window at a page, signed in by the address if there is a ``token``."""
        context = await browser.new_context(**{**DESKTOP, **settings})
        context.set_default_timeout(PATIENCE_MS)
        person = cls(await context.new_page(), context)
        person.page.on("console", person._hear)
        person.page.on("pageerror", lambda error: person.complaints.append(f"error: {error}"))
        person.page.on("request", lambda request: person._note_key(request.headers))
        person.page.on(
            "response",
            lambda response: (
                person.statuses.append(response.status) if "idempotency-key" in response.request.headers else None
            ),
        )
        await person.page.goto(url + (f"#token={token}" if token else ""))
        return person

    def _hear(self, message: ConsoleMessage) -> None:
        # A browser calls every answer of 400 and more, and every broken connection, an error. Those of the API are
        # the page's business, and what it makes of them is what tests look at.
        refused = message.text.startswith("Failed to load resource")
        if refused and urlsplit(message.location["url"]).path.startswith("/v1/"):
            return
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location['url']})")

    def _note_key(self, headers: dict[str, str]) -> None:
        if key := headers.get("idempotency-key"):
            self.keys.append(key)

    @property
    def purchases(self) -> Locator:
        """Own purchases, newest first."""
        return self.page.locator("#purchases > li")

    async def buy(self) -> None:
        """Presses the button as soon as it can be pressed."""
        await self.page.locator("#buy-button").click()

    async def sees(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Waits until an element shows a text."""
        await expect(self.page.locator(selector)).to_contain_text(text)

    async def has_state(self, state: str, *, within_s: float = PATIENCE_MS / 1000) -> None:
        """Waits until the newest own purchase is in a state."""
        await expect(self.purchases.first).to_have_attribute("data-state", state, timeout=within_s * 1000)

    async def confirm(self, action: str) -> None:
        """Presses the button of the question that is open."""
        await self.page.get_by_role("dialog").get_by_role("button", name=action, exact=True).click()

    async def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        width: int = await self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width


@dataclass
class Visitors:
    """Lets people in, and sees to it that they leave without complaints."""

    browser: Browser
    gateway_url: str
    people: list[Person] = field(default_factory=list)

    async def at(self, path: str, token: str | None = None, **settings: Any) -> Person:
        """Somebody new at a page."""
        person = await Person.arrive(self.browser, self.gateway_url + path, token, **settings)
        self.people.append(person)
        return person

    async def leave(self) -> None:
        """Closes every window. Fails if a page has complained of anything."""
        for person in self.people:
            await person.context.close()
        assert not any(person.complaints for person in self.people), list(_complaints(self.people))


def _complaints(people: Iterable[Person]) -> Iterable[str]:
    return (complaint for person in people for complaint in person.complaints)
