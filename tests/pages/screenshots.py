"""Pictures of the pages for people who read about them: ``make screenshots``.

Runs a small real sale on a stack of its own, sells it out with a line behind it, and writes docs/images/*.png.
"""

import asyncio
import sys
import uuid
from pathlib import Path

import uvloop
from playwright.async_api import Browser, expect

from bench.seeding import fund_accounts
from tests.pages.browsing import DESKTOP, PHONE, Person, open_browser
from tests.pages.shop import Shop, open_shop
from tests.support.servers import MeshStack

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
SHARES, BUYERS, WAITING = 1_500, 1_420, 64
#: Slow enough that settlement is still under way when the pictures are taken, purchases/s.
RATE_PER_S = 20
#: Requests under way at once.
SLOTS = 32
_BYTES_MAX = 200_000


async def _crowd(shop: Shop, sale: str, names: list[str], body: dict[str, object]) -> None:
    """Everybody presses the button once, a few at a time."""
    slots = asyncio.Semaphore(SLOTS)

    async def press(user: str) -> None:
        async with slots:
            await shop.ask("POST", f"/v1/sales/{sale}/purchases", user, body, uuid.uuid4().hex)

    await asyncio.gather(*(press(user) for user in names))


async def _picture(person: Person, name: str, *, whole: bool = False) -> None:
    path = FOLDER / f"{name}.png"
    await person.page.screenshot(path=path, full_page=whole, animations="disabled", scale="css")
    size = path.stat().st_size
    if size > _BYTES_MAX:
        raise SystemExit(f"{path} has {size:,} bytes, more than {_BYTES_MAX:,}")
    sys.stdout.write(f"{path.relative_to(FOLDER.parents[1])}: {size / 1000:.0f} kB\n")


async def _take(shop: Shop, browser: Browser) -> None:
    sale = await shop.sale("Nordic Wind Fund", SHARES, per_purchase_limit=4, per_user_limit=6)
    await shop.sale("Harbour Bonds 2031", 800, opened=False)
    alice = await shop.customer("alice", 400)
    names = [f"shot-{uuid.uuid4().hex[:6]}-{number}" for number in range(BUYERS + WAITING)]
    # Some cannot pay: their units come back, and go to whoever is next in line.
    await fund_accounts(
        shop.clients, {name: 500 if place % 12 == 0 else 9_000 for place, name in enumerate(names)}, "s"
    )
    gateway = shop.stack.gateway_url
    people: dict[str, Person] = {}
    for scheme in ("light", "dark"):
        for size, window in (("phone", PHONE), ("desktop", DESKTOP)):
            settings = {**window, "color_scheme": scheme}
            people[f"buyer-{size}-{scheme}"] = await Person.arrive(
                browser, f"{gateway}/sales/{sale}", shop.token(alice), **settings
            )
            people[f"operator-{size}-{scheme}"] = await Person.arrive(
                browser, f"{gateway}/operator", shop.token("olga", operator=True), **settings
            )
    buyer = people["buyer-phone-light"]
    await expect(buyer.page.locator("#buy-button")).to_be_enabled()
    await shop.bought(sale, alice, 2)
    await _crowd(shop, sale, names[:BUYERS], {"quantity": 1})
    for name, person in people.items():
        if name.startswith("buyer") and "open" in sys.argv:
            await _picture(person, f"{name}-open")
    await _crowd(shop, sale, names[:BUYERS], {"quantity": 1})
    await _crowd(shop, sale, names[BUYERS:], {"quantity": 1, "waitlist": True})
    await shop.ask("POST", f"/v1/sales/{sale}/purchases", alice, {"quantity": 1, "waitlist": True}, uuid.uuid4().hex)
    for name, person in people.items():
        if name.startswith("buyer"):
            await person.page.reload()
            await person.has_state("WAITLISTED")
        else:
            await expect(person.page.locator("#audit .audit-line").first).to_be_visible()
    # A minute of lines is worth more than three points of one.
    await asyncio.sleep(8)
    for name, person in people.items():
        await _picture(person, name)


async def main() -> None:
    """Takes every picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = {"SETTLEMENT_RATE_PER_S": str(RATE_PER_S), "SETTLEMENT_BURST": "50"}
    with MeshStack(**settings) as stack:
        async with open_shop(stack) as shop, open_browser() as browser:
            await _take(shop, browser)


if __name__ == "__main__":
    uvloop.run(main())
