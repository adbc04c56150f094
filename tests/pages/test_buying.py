"""A buyer at a sale's page: sees, buys, is told what became of it, and can still change their mind."""

import re
import time

from google.protobuf.timestamp_pb2 import Timestamp
from playwright.async_api import expect

from tests.pages.browsing import Visitors
from tests.pages.shop import PRICE, Shop


async def test_a_buyer_finds_the_sale_buys_a_share_and_sees_it_paid(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Growth Fund", total=10)
    alice = await shop.customer("alice")
    person = await visitors.at("/", shop.token(alice))
    await person.page.locator(f'a[href="/sales/{sale}"]').click()
    await person.sees("#sale-name", "Growth Fund")
    await person.sees("#available", re.compile("^10$"))
    await person.sees("#balance", "€100.00")
    await person.buy()
    await person.has_state("CONFIRMED")
    await person.sees("#purchases", "You own share 1.")
    await person.sees("#announcer", "Bought. You own share 1.")
    await person.sees("#available", re.compile("^9$"))
    await person.sees("#balance", "€75.00")
    assert len(await shop.purchases(sale, alice)) == 1
    await person.purchases.get_by_role("button", name="Receipt").click()
    await person.sees("dialog .receipt", "sold to you")
    await person.sees("dialog .receipt", "€25.00, paid")
    assert await person.page.locator("dialog .steps li").count() >= 3
    await person.page.keyboard.press("Escape")
    await expect(person.page.locator("dialog")).to_have_count(0)


async def test_several_shares_are_bought_at_once_and_the_numbers_are_told(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=10, per_purchase_limit=4, per_user_limit=4)
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("bob")))
    for _ in range(2):
        await person.page.get_by_role("button", name="One share more").click()
    await expect(person.page.locator("#buy-button")).to_have_text("Buy 3 shares · €75.00")
    await person.buy()
    await person.has_state("CONFIRMED")
    await person.sees("#purchases", "You own shares 1–3.")


async def test_a_refund_is_asked_for_twice_and_brings_money_and_share_back(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=3)
    carol = await shop.customer("carol")
    await shop.bought(sale, carol)
    person = await visitors.at(f"/sales/{sale}", shop.token(carol))
    await person.sees("#available", "2")
    await person.purchases.get_by_role("button", name="Refund").click()
    await person.confirm("Not now")
    await person.has_state("CONFIRMED")
    await person.purchases.get_by_role("button", name="Refund").click()
    await person.confirm("Refund it")
    await person.has_state("REFUNDED")
    await person.sees("#purchases", "€25.00 is back on your balance.")
    await person.sees("#available", "3")
    await person.sees("#balance", "€100.00")


async def test_who_cannot_pay_is_told_why_and_not_charged(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=3)
    poor = await shop.customer("poor", eur=10)
    person = await visitors.at(f"/sales/{sale}", shop.token(poor))
    await person.buy()
    await person.has_state("FAILED")
    await person.sees("#purchases", "Your balance was too low to pay for it. Nothing was charged.")
    assert await shop.balance(poor) == 1000


async def test_who_has_as_many_as_allowed_is_refused_in_plain_words(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=3, per_user_limit=1, per_purchase_limit=1)
    dora = await shop.customer("dora")
    await shop.bought(sale, dora)
    person = await visitors.at(f"/sales/{sale}", shop.token(dora))
    await person.buy()
    await person.sees("#wish", "as many shares as one person may. Nothing was charged.")
    await expect(person.page.locator("#buy-button")).to_be_enabled()
    assert await shop.balance(dora) == 10_000 - PRICE


async def test_a_sale_opens_by_itself_while_somebody_waits_for_it(shop: Shop, visitors: Visitors) -> None:
    open_time = Timestamp()
    open_time.FromMilliseconds(int(time.time() * 1000) + 4_000)
    sale = await shop.sale(total=3, opened=False, open_time=open_time)
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("early")))
    await person.sees("#sale-state", "Opens soon")
    await person.sees("#offer-words", re.compile(r"Opens at .*, in \d s\."))
    await expect(person.page.locator("#buy-button")).to_be_disabled()
    await person.sees("#sale-state", "Open")
    await person.buy()
    await person.has_state("CONFIRMED")


async def test_a_sale_that_is_not_there_is_named_so(visitors: Visitors) -> None:
    for path in ("/sales/3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3a", "/sales/not-an-id"):
        person = await visitors.at(path)
        await person.sees("#page-note", "There is no such sale.")


async def test_a_token_is_taken_from_the_address_kept_for_the_tab_and_can_be_pasted(
    shop: Shop, visitors: Visitors
) -> None:
    sale = await shop.sale()
    token = shop.token(await shop.customer("erin"))
    linked = await visitors.at(f"/sales/{sale}", token)
    await linked.sees("#who", "erin-")
    assert "#" not in linked.page.url
    assert token not in await linked.page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
    await linked.page.reload()
    await linked.sees("#who", "erin-")

    pasted = await visitors.at(f"/sales/{sale}")
    await expect(pasted.page.locator("#buy")).to_be_hidden()
    await pasted.page.get_by_label("Token").fill("nonsense")
    await pasted.page.keyboard.press("Enter")
    await pasted.sees("#sign-in", "Your token is not valid, or has expired.")
    await pasted.page.get_by_label("Token").fill(token)
    await pasted.page.keyboard.press("Enter")
    await pasted.sees("#who", "erin-")
    await pasted.page.get_by_role("button", name="Sign out").click()
    await expect(pasted.page.get_by_label("Token")).to_be_visible()
    assert await pasted.page.evaluate("sessionStorage.getItem('token')") is None
