"""A system whose gateway lets a user send twice and then once in two seconds, and a browser."""

from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser

from tests.pages.browsing import Visitors, open_browser
from tests.pages.shop import Shop, open_shop
from tests.support.servers import MeshStack


@pytest.fixture(scope="package")
def pages_stack() -> Iterator[MeshStack]:
    with MeshStack(
        GATEWAY_USER_RATE_PER_S="0.5",
        GATEWAY_USER_BURST="2",
        # A purchase that finds the Balance Service away is parked after a second, not after a minute.
        SETTLEMENT_ATTEMPTS_MAX="2",
    ) as running:
        yield running


@pytest.fixture(scope="package")
async def shop(pages_stack: MeshStack) -> AsyncIterator[Shop]:
    async with open_shop(pages_stack) as opened:
        yield opened


@pytest.fixture(scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture
async def visitors(browser: Browser, pages_stack: MeshStack) -> AsyncIterator[Visitors]:
    people = Visitors(browser, pages_stack.gateway_url)
    yield people
    await people.leave()
