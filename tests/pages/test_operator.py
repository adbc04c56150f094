"""The operator's board: what it shows, what it does, and who may see it."""

import asyncio
import re

import aio_pika
from playwright.async_api import Locator, expect

from tests.pages.browsing import Person, Visitors
from tests.pages.shop import Shop


def _card(person: Person, sale: str) -> Locator:
    return person.page.locator(f'[data-sale="{sale}"]')


async def _board(shop: Shop, visitors: Visitors) -> Person:
    return await visitors.at("/operator", shop.token("olga", operator=True))


async def test_only_an_operator_gets_in(shop: Shop, visitors: Visitors) -> None:
    person = await visitors.at("/operator")
    await expect(person.page.get_by_label("Token")).to_be_visible()
    await expect(person.page.locator("#board")).to_be_hidden()
    person = await visitors.at("/operator", shop.token("mallory"))
    await person.sees("#sign-in", "This token is not an operator's.")
    await expect(person.page.locator("#board")).to_be_hidden()


async def test_the_board_shows_a_sale_its_settlement_and_what_was_answered(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Board Fund", total=5)
    board = await _board(shop, visitors)
    card = _card(board, sale)
    await expect(card.get_by_role("heading")).to_have_text("Board Fund")
    await expect(card.locator(".chip")).to_have_text("Open")
    before = await board.page.locator('[data-kind="accepted"] .tile-total').inner_text()
    await shop.bought(sale, await shop.customer("buyer"))
    poor = await shop.customer("poor", eur=1)
    await shop.ask("POST", f"/v1/sales/{sale}/purchases", poor, {"quantity": 1}, "poor-1")
    await expect(card.locator(".settlement")).to_contain_text("2 of 2")
    await expect(card.locator(".figure.is-sold dd")).to_have_text("1")
    await expect(card.locator(".figure.is-available dd")).to_have_text("4")
    await expect(board.page.locator('[data-kind="accepted"] .tile-total')).not_to_have_text(before)
    await card.get_by_text("Purchases by outcome").click()
    await expect(card.locator("tbody")).to_contain_text("Not bought: INSUFFICIENT_FUNDS")
    await expect(board.page.locator("#audit")).to_have_attribute("data-verdict", "kept")


async def test_a_sale_is_opened_paused_and_closed_and_its_buyers_see_it(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Life Fund", total=5, opened=False)
    board = await _board(shop, visitors)
    buyer = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("buyer")))
    await buyer.sees("#sale-state", "Not open yet")
    card = _card(board, sale)

    async def press(name: str, action: str) -> None:
        await card.get_by_role("button", name=name, exact=True).click()
        await board.confirm(action)

    await press("Open", "Not now")
    await buyer.sees("#sale-state", "Not open yet")
    await press("Open", "Open the sale")
    await expect(card.locator(".chip")).to_have_text("Open")
    await buyer.sees("#sale-state", "Open")
    await expect(buyer.page.locator("#buy-button")).to_be_enabled()
    await press("Pause", "Pause the sale")
    await buyer.sees("#sale-state", "Paused")
    await buyer.sees("#announcer", "The sale is now: Paused.")
    await expect(buyer.page.locator("#buy-button")).to_be_disabled()
    await expect(card.get_by_role("button", name="Pause", exact=True)).to_be_hidden()
    await press("Open", "Open the sale")
    await buyer.sees("#sale-state", "Open")
    await press("Close", "Close for good")
    await buyer.sees("#sale-state", "Closed")
    await expect(card.locator(".chip")).to_have_text("Closed")
    for name in ("Open", "Pause", "Close", "Raise total"):
        await expect(card.get_by_role("button", name=name, exact=True)).to_be_hidden()
    await card.get_by_role("button", name="Statement").click()
    await board.sees("dialog", "0 shares of 5")
    await board.sees("dialog", "Final: nothing of this sale can change any more.")


async def test_raising_the_total_serves_the_line(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Raised Fund", total=1)
    await shop.bought(sale, await shop.customer("winner"))
    buyer = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("waiter")))
    await expect(buyer.page.locator("#buy-button")).to_have_text("Join the line for 1 share")
    await buyer.buy()
    await buyer.has_state("WAITLISTED")
    board = await _board(shop, visitors)
    await expect(_card(board, sale).locator(".figure.is-waiting dd")).to_have_text("1")
    await _card(board, sale).get_by_role("button", name="Raise total").click()
    field = board.page.get_by_label("Shares in all")
    await field.fill("1")
    await board.confirm("Raise the total")
    # It can only grow, and the question stays until that is so.
    await expect(field).to_be_visible()
    await field.fill("2")
    await board.confirm("Raise the total")
    await buyer.has_state("CONFIRMED")
    await expect(_card(board, sale).locator(".figure.is-sold dd")).to_have_text("2")


async def test_a_statement_names_everybody_who_won_nothing(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Stated Fund", total=5)
    await shop.bought(sale, await shop.customer("buyer"))
    poor = await shop.customer("poor", eur=1)
    _, made = await shop.ask("POST", f"/v1/sales/{sale}/purchases", poor, {"quantity": 1}, "poor-1")
    await shop.ask("GET", f"/v1/purchases/{made['purchase_id']}?wait=20", poor)
    board = await _board(shop, visitors)
    await _card(board, sale).get_by_role("button", name="Statement").click()
    await board.sees("dialog", "1 share of 5")
    await board.sees("dialog", "€25.00")
    await board.sees("dialog", "Not final")
    await board.sees("dialog", poor)


async def test_dead_letters_are_shown_and_replayed(shop: Shop, visitors: Visitors) -> None:
    connection = await aio_pika.connect(shop.stack.environment["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        message = aio_pika.Message(b"not a settlement message", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "settlement.00")
    board = await _board(shop, visitors)
    section = board.page.locator("#dead-letters")
    await expect(section.locator("li").first).to_be_visible()
    await expect(board.page.locator("#queue .is-bad dd")).to_have_text(re.compile(r"^[1-9]"))
    await section.get_by_role("button", name="Replay").click()
    await board.confirm("Replay")
    # What nobody can read stays where it is, and says why.
    await expect(section.get_by_role("status")).to_contain_text(re.compile(r"0 purchases are queued again\. 1 stay"))
    await expect(section.locator("li").first).to_be_visible()


async def test_parked_purchases_are_shown_and_let_go_on(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Stuck Fund", total=5)
    user = await shop.customer("stuck")
    buyer = await visitors.at(f"/sales/{sale}", shop.token(user))
    board = await _board(shop, visitors)
    section = board.page.locator("#parked")
    await expect(section).to_contain_text("There are none.")
    await expect(buyer.page.locator("#buy-button")).to_be_enabled()
    await asyncio.to_thread(shop.stack.stack.stop, "balance")
    try:
        await buyer.buy()
        await buyer.has_state("PARKED", within_s=60)
    finally:
        await asyncio.to_thread(shop.stack.stack.start, "balance")
    await buyer.sees("#purchases", "You need do nothing, and cannot be charged twice.")
    await expect(section).to_contain_text(user)
    await section.get_by_role("button", name="Replay").click()
    await board.confirm("Replay")
    await expect(section.get_by_role("status")).to_contain_text("1 are on their way again.")
    await buyer.has_state("CONFIRMED")
    await expect(section).to_contain_text("There are none.")
    assert await shop.balance(user) == 7_500
