"""The line behind a sold-out sale: joining it, one's place in it, and what becomes of it."""

import re

from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from playwright.async_api import expect

from bench.clients import call
from tests.pages.browsing import Visitors
from tests.pages.shop import Shop

JOIN = re.compile("^Join the line for 1 share$")


async def test_the_page_sees_the_sale_sell_out_and_offers_the_line(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=1)
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("late")))
    await expect(person.page.locator("#buy-button")).to_have_text("Buy 1 share · €25.00")
    await shop.bought(sale, await shop.customer("quick"))
    await person.sees("#sale-state", "Sold out")
    await person.sees("#available", re.compile("^0$"))
    await person.sees("#announcer", "Sold out.")
    await expect(person.page.locator("#buy-button")).to_have_text(JOIN)
    await person.sees("#offer-words", "You would be the first in line. You pay €25.00 only if your turn comes.")


async def test_those_in_line_see_their_places_and_are_served_in_order(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=1)
    winner, first, second = [await shop.customer(name) for name in ("winner", "first", "second")]
    won = await shop.bought(sale, winner)
    one = await visitors.at(f"/sales/{sale}", shop.token(first))
    two = await visitors.at(f"/sales/{sale}", shop.token(second))
    for person, words in ((one, "You are next in line."), (two, "Place 2 in line")):
        await expect(person.page.locator("#buy-button")).to_have_text(JOIN)
        await person.buy()
        await person.has_state("WAITLISTED")
        await person.sees("#purchases", words)
    await one.sees("#offer-words", "2 people are in line already.")

    status, _ = await shop.ask("POST", f"/v1/purchases/{won}/refund", winner)
    assert status == 202
    await one.has_state("CONFIRMED")
    await one.sees("#announcer", "Bought. You own share 1.")
    await two.sees("#purchases", "You are next in line.")
    await two.has_state("WAITLISTED")
    assert await shop.balance(first) == 7_500
    assert await shop.balance(second) == 10_000


async def test_who_leaves_the_line_is_out_of_it_for_good(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=1)
    await shop.bought(sale, await shop.customer("winner"))
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("fickle")))
    await expect(person.page.locator("#buy-button")).to_have_text(JOIN)
    await person.buy()
    await person.has_state("WAITLISTED")
    await person.purchases.get_by_role("button", name="Leave the line").click()
    await person.confirm("Leave the line")
    await person.has_state("CANCELLED")
    await person.sees("#purchases", "You cancelled it. Nothing was charged.")
    raising = inventory.RaiseSaleTotalRequest(sale_id=sale, total=2, actor="test")
    await call(shop.clients.inventory.RaiseSaleTotal, raising)
    # The new share is for everybody: nobody is in line any more.
    await person.sees("#available", re.compile("^1$"))
    await person.has_state("CANCELLED")


async def test_closing_a_sale_tells_those_in_line_that_it_is_over(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=1)
    await shop.bought(sale, await shop.customer("winner"))
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("patient")))
    await expect(person.page.locator("#buy-button")).to_have_text(JOIN)
    await person.buy()
    await person.has_state("WAITLISTED")
    await call(shop.clients.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=sale, actor="test"))
    await person.has_state("FAILED")
    await person.sees("#purchases", "The sale closed before your turn in line came. Nothing was charged.")
    await person.sees("#sale-state", "Closed")
    await expect(person.page.locator("#buy-button")).to_be_disabled()


async def test_more_than_is_left_can_be_waited_for(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=2, per_purchase_limit=2, per_user_limit=2)
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("greedy")))
    await person.page.get_by_role("button", name="One share more").click()
    await expect(person.page.locator("#buy-button")).to_have_text("Buy 2 shares · €50.00")
    await shop.bought(sale, await shop.customer("modest"))
    await expect(person.page.locator("#buy-button")).to_have_text("Join the line for 2 shares")
    await person.sees("#offer-words", "Only 1 left.")
