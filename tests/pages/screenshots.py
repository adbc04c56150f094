"""Pictures of the pages for people who read about them: ``make screenshots``.

Runs a small real sale on a stack of its own, sells it out with a line behind it, and writes docs/images/*.png while
it settles.
"""

import asyncio
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import uvloop
from playwright.async_api import Browser, expect

from bench.seeding import fund_accounts
from tests.pages.browsing import DESKTOP, PHONE, Person, open_browser
from tests.pages.shop import Shop, open_shop
from tests.support.servers import MeshStack

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
SHARES, BUYERS, LATE, WAITING = 1_500, 1_530, 400, 160
#: One buyer in so many cannot pay: the units come back, and go to whoever is next in line.
ONE_IN_POOR = 12
#: Slow enough that settlement is still under way when the pictures are taken, purchases/s.
RATE_PER_S = 20
#: Requests under way at once.
SLOTS = 32
#: How long the board has seen people come late before its picture is taken: rates are those of five seconds, s.
WATCHED_S = 4
BYTES_MAX = 200_000


async def _press(shop: Shop, sale: str, names: Sequence[str], *, waitlist: bool) -> None:
    """Everybody presses the button once, a few at a time."""
    slots = asyncio.Semaphore(SLOTS)
    body = {"quantity": 1, "waitlist": True} if waitlist else {"quantity": 1}

    async def press(user: str) -> None:
        async with slots:
            await shop.ask("POST", f"/v1/sales/{sale}/purchases", user, body, uuid.uuid4().hex)

    await asyncio.gather(*(press(user) for user in names))


async def _picture(person: Person, name: str) -> None:
    """Raises SystemExit for a picture too large to be kept with the sources, and for a page that complains."""
    path = FOLDER / f"{name}.png"
    await person.page.screenshot(path=path, animations="disabled")
    size = path.stat().st_size
    if size > BYTES_MAX or person.complaints:
        raise SystemExit(f"{path.name}: {size:,} bytes (at most {BYTES_MAX:,}), complaints: {person.complaints}")
    sys.stdout.write(f"{path.relative_to(FOLDER.parents[1])}: {size / 1000:.0f} kB\n")


async def _take(shop: Shop, browser: Browser) -> None:
    sale = await shop.sale("Nordic Wind Fund", SHARES, per_purchase_limit=4, per_user_limit=6)
    await shop.sale("Harbour Bonds 2031", 800, opened=False)
    run = uuid.uuid4().hex[:6]
    names = [f"{run}-{place}" for place in range(BUYERS + LATE + WAITING)]
    crowd, late, waiting = names[:BUYERS], names[BUYERS : BUYERS + LATE], names[BUYERS + LATE :]
    funds = {name: 500 if place % ONE_IN_POOR == 0 else 9_000 for place, name in enumerate(names)}
    await fund_accounts(shop.clients, {**funds, "alice": 40_000}, run)
    buyer, operator = shop.token("alice"), shop.token("olga", operator=True)
    people: dict[str, Person] = {}
    for size, window in (("phone", PHONE), ("desktop", DESKTOP)):
        for scheme in ("light", "dark"):
            look = {**window, "color_scheme": scheme}
            for name, path, token in (("buyer", f"/sales/{sale}", buyer), ("operator", "/operator", operator)):
                person = await Person.arrive(browser, shop.stack.gateway_url + path, token, **look)
                people[f"{name}-{size}-{scheme}"] = person
    await shop.bought(sale, "alice", 2)
    await _press(shop, sale, crowd, waitlist=False)
    coming = asyncio.gather(_press(shop, sale, late, waitlist=False), _press(shop, sale, waiting, waitlist=True))
    await asyncio.sleep(WATCHED_S)
    for name, person in people.items():
        if name.startswith("operator"):
            await expect(person.page.locator("#audit")).to_have_attribute("data-verdict", "kept")
            await _picture(person, name)
    await coming
    await _press(shop, sale, ["alice"], waitlist=True)
    for name, person in people.items():
        if name.startswith("buyer"):
            # Each window learns by itself of what was bought elsewhere only when it is loaded.
            await person.page.reload()
            await expect(person.page.locator(".place strong").first).to_be_visible()
            await _picture(person, name)


async def main() -> None:
    """Takes every picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rate = str(RATE_PER_S)
    with MeshStack(SETTLEMENT_RATE_PER_S=rate, SETTLEMENT_BURST="50") as stack:
        async with open_shop(stack) as shop, open_browser() as browser:
            await _take(shop, browser)


if __name__ == "__main__":
    uvloop.run(main())
