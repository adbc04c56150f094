"""What a page does when it is shed, when answers are lost, when it is reloaded, and when the gateway goes away."""

import asyncio
import json
import re
import time

from playwright.async_api import Request, Route, expect

from tests.pages.browsing import Person, Visitors
from tests.pages.shop import PRICE, Shop


async def _spend_the_rate(shop: Shop, person: Person) -> None:
    """Buys until the gateway says that it is too often (twice at once, then once in two seconds)."""
    await expect(person.page.locator("#buy-button")).to_be_enabled()
    for bought in (1, 2):
        await person.buy()
        await expect(person.purchases).to_have_count(bought)
        await expect(person.page.locator("#buy-button")).to_be_enabled()


async def test_a_429_is_waited_out_as_told_and_sent_again_under_the_same_key(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("eager")))
    sent: list[float] = []
    told_ms: list[int] = []

    def note(request: Request) -> None:
        if "idempotency-key" in request.headers:
            sent.append(time.monotonic())

    person.page.on("request", note)
    await _spend_the_rate(shop, person)
    async with person.page.expect_response(lambda response: response.status == 429) as refused:
        await person.buy()
    told_ms.append((await (await refused.value).json())["retry_after_ms"])
    await person.sees("#wish", "You are asking very often.")
    await person.sees("#wish .countdown", re.compile(r"again in \d s"))
    await expect(person.page.locator("#buy-button")).to_be_disabled()
    await expect(person.purchases).to_have_count(3)
    await expect(person.page.locator("#wish")).to_be_hidden()
    assert person.statuses == [202, 202, 429, 202]
    assert person.keys[2] == person.keys[3]
    assert len(set(person.keys)) == 3
    assert (sent[3] - sent[2]) * 1000 >= told_ms[0]


async def test_a_request_that_waits_goes_on_after_a_reload_under_its_key(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    user = await shop.customer("nervous")
    person = await visitors.at(f"/sales/{sale}", shop.token(user))
    await _spend_the_rate(shop, person)
    async with person.page.expect_response(lambda response: response.status == 429):
        await person.buy()
    await person.page.reload()
    await expect(person.purchases).to_have_count(3)
    assert person.keys[-1] == person.keys[2]
    assert len(set(person.keys)) == 3
    assert len(await shop.purchases(sale, user)) == 3


async def test_a_lost_answer_is_asked_for_again_and_nobody_buys_twice(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    user = await shop.customer("unlucky")
    person = await visitors.at(f"/sales/{sale}", shop.token(user))
    lost: list[int] = []

    async def lose_the_first(route: Route) -> None:
        if route.request.method != "POST" or lost:
            await route.continue_()
            return
        # The gateway has it, and its answer does not arrive.
        lost.append((await route.fetch()).status)
        await route.abort("connectionreset")

    await person.page.route("**/purchases", lose_the_first)
    await person.buy()
    await person.sees("#wish", "The gateway cannot be reached just now.")
    await person.has_state("CONFIRMED")
    assert lost == [202]
    assert len(person.keys) == 2
    assert len(set(person.keys)) == 1
    assert len(await shop.purchases(sale, user)) == 1
    assert await shop.balance(user) == 10_000 - PRICE


async def test_an_old_request_is_not_sent_again_without_asking(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    user = await shop.customer("absent")
    person = await visitors.at(f"/sales/{sale}", shop.token(user))
    await expect(person.page.locator("#buy-button")).to_be_enabled()
    wish = {"saleId": sale, "user": user, "quantity": 1, "waitlist": False, "key": "k" * 32}
    wish["madeAt"] = int(time.time() * 1000) - 3_600_000
    await person.page.evaluate(
        "([name, text]) => sessionStorage.setItem(name, text)", [f"wish:{sale}:{user}", json.dumps(wish)]
    )
    await person.page.reload()
    await person.sees("#wish", "the answer never came")
    await expect(person.page.locator("#buy-button")).to_be_disabled()
    assert person.keys == []
    await person.page.get_by_role("button", name="Ask again").click()
    await person.has_state("CONFIRMED")
    assert person.keys == ["k" * 32]
    await person.page.reload()
    await person.has_state("CONFIRMED")
    await expect(person.page.locator("#wish")).to_be_hidden()


async def test_who_stops_trying_is_free_to_buy_anew(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    user = await shop.customer("fickle")
    person = await visitors.at(f"/sales/{sale}", shop.token(user))
    await _spend_the_rate(shop, person)
    async with person.page.expect_response(lambda response: response.status == 429):
        await person.buy()
    await person.page.get_by_role("button", name="Stop trying").click()
    await expect(person.page.locator("#wish")).to_be_hidden()
    await expect(person.page.locator("#buy-button")).to_be_enabled()
    assert await person.page.evaluate("Object.keys(sessionStorage)") == ["token"]
    assert len(await shop.purchases(sale, user)) == 2


async def test_the_page_comes_back_by_itself_after_the_gateway_was_restarted(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale(total=10)
    user = await shop.customer("steady")
    person = await visitors.at(f"/sales/{sale}", shop.token(user))
    operator = await visitors.at("/operator", shop.token("olga", operator=True))
    await person.sees("#stream-state", "Live")
    await expect(operator.page.locator("#freshness")).to_have_attribute("data-state", "live")

    await asyncio.to_thread(shop.stack.stack.stop, "gateway")
    await person.sees("#stream-state", "Reconnecting")
    await operator.sees("#freshness", "Out of reach")
    await person.buy()
    await person.sees("#wish", "The gateway cannot be reached just now.")
    await asyncio.to_thread(shop.stack.stack.start, "gateway")

    await person.has_state("CONFIRMED")
    await person.sees("#stream-state", "Live")
    await person.sees("#available", re.compile("^9$"))
    await expect(operator.page.locator("#freshness")).to_have_attribute("data-state", "live")
    assert len(set(person.keys)) == 1
    assert len(await shop.purchases(sale, user)) == 1
    await shop.bought(sale, await shop.customer("other"))
    await person.sees("#available", re.compile("^8$"))


async def test_a_stream_that_is_refused_is_asked_for_again(shop: Shop, visitors: Visitors) -> None:
    """A browser itself gives up for good after an answer that is no stream."""
    sale = await shop.sale(total=10)
    person = await visitors.at(f"/sales/{sale}")
    await person.sees("#stream-state", "Live")
    await asyncio.to_thread(shop.stack.stack.stop, "inventory")
    try:
        await person.sees("#stream-state", "Recounting")
        async with person.page.expect_response(lambda answer: "stream" in answer.url and answer.status == 503):
            await asyncio.to_thread(shop.stack.stack.restart, "gateway")
        await person.sees("#stream-state", "Reconnecting")
    finally:
        await asyncio.to_thread(shop.stack.stack.start, "inventory")
    await person.sees("#stream-state", "Live")
    await person.sees("#available", re.compile("^10$"))
