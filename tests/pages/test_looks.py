"""How pages look: on a phone and on a desk, by day and by night, with the longest names and the largest numbers."""

from typing import Any

import pytest
from playwright.async_api import expect

from tests.pages.browsing import DESKTOP, PHONE, Person, Visitors
from tests.pages.shop import Shop

WINDOWS: dict[str, dict[str, Any]] = {
    "small phone": {**PHONE, "viewport": {"width": 320, "height": 568}},
    "phone": PHONE,
    "tablet": {"viewport": {"width": 820, "height": 1180}},
    "desktop": DESKTOP,
}

#: Texts that are harder to read than WCAG 2.2 (1.4.3, level AA) allows, as "text: ratio".
_FAINT = """() => {
  const parse = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1 };
  };
  const luminance = (rgb) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.alpha === 1) return color.rgb;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
    const text = own.map((child) => child.data).join("").trim();
    if (!text || !node.checkVisibility() || node.closest(".unseen, :disabled, .is-stale")) continue;
    const style = getComputedStyle(node);
    const [light, dark] = [luminance(parse(style.color).rgb), luminance(background(node))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) faint.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""

#: Fields and buttons that a screen reader could not name.
_NAMELESS = """() => [...document.querySelectorAll("button, input")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.ariaLabel || node.labels?.length || node.textContent.trim()))
  .map((node) => node.outerHTML)"""


async def _full_pages(shop: Shop, visitors: Visitors, settings: dict[str, Any]) -> list[Person]:
    """Every page with a lot on it."""
    sale = await shop.sale("W" * 120 + " Fund of many words" * 4, 10_000_000, per_purchase_limit=100)
    user = await shop.customer("a-user-with-a-name-as-long-as-forty-marks", eur=9_999_999)
    await shop.bought(sale, user, 100)
    buyer = await visitors.at(f"/sales/{sale}", shop.token(user), **settings)
    await buyer.has_state("CONFIRMED")
    await buyer.sees("#available", "9,999,900")
    await buyer.sees("#balance", "€")
    board = await visitors.at("/operator", shop.token("olga", operator=True), **settings)
    await expect(board.page.locator(f'[data-sale="{sale}"] .figure.is-available dd')).to_have_text("9,999,900")
    await board.page.locator(f'[data-sale="{sale}"]').get_by_text("Purchases by outcome").click()
    sales = await visitors.at("/", **settings)
    await expect(sales.page.locator("#sales > li").first).to_be_visible()
    guest = await visitors.at(f"/sales/{sale}", **settings)
    await guest.sees("#available", "9,999,900")
    return [buyer, board, sales, guest]


@pytest.mark.parametrize("window", WINDOWS)
async def test_nothing_is_wider_than_the_window(shop: Shop, visitors: Visitors, window: str) -> None:
    people = await _full_pages(shop, visitors, WINDOWS[window])
    assert [await person.overflow() for person in people] == [0, 0, 0, 0]
    buyer, board = people[0], people[1]
    await buyer.purchases.get_by_role("button", name="Refund").click()
    await board.page.get_by_role("button", name="Close", exact=True).first.click()
    for person in (buyer, board):
        await expect(person.page.get_by_role("dialog")).to_be_visible()
        assert await person.overflow() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_can_be_read_and_named(shop: Shop, visitors: Visitors, scheme: str) -> None:
    people = await _full_pages(shop, visitors, {**PHONE, "color_scheme": scheme})
    colors = [await person.page.evaluate("getComputedStyle(document.body).backgroundColor") for person in people]
    assert set(colors) == {"rgb(245, 244, 239)" if scheme == "light" else "rgb(15, 19, 21)"}
    for person in people:
        await expect(person.page.locator(".is-stale")).to_have_count(0)
        assert await person.page.evaluate(_FAINT) == []
        assert await person.page.evaluate(_NAMELESS) == []


@pytest.mark.parametrize("window", ["phone", "desktop"])
async def test_nothing_moves_when_a_number_loses_a_digit(shop: Shop, visitors: Visitors, window: str) -> None:
    sale = await shop.sale(total=1000)
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("still")), **WINDOWS[window])
    await person.sees("#balance", "€100.00")
    await person.sees("#available", "1,000")
    await expect(person.page.locator("#buy-button")).to_be_enabled()
    places = """() => [...document.querySelectorAll("#left-of, .bar, .figure, .figure dd, #buy, #buy *")]
      .map((node) => { const box = node.getBoundingClientRect(); return [node.id, box.x, box.y]; })"""
    before = await person.page.evaluate(places)
    await shop.bought(sale, await shop.customer("other"))
    await person.sees("#available", "999")
    await expect(person.page.locator(".figure.is-sold dd")).to_have_text("1")
    assert await person.page.evaluate(places) == before
    assert len(before) > 10


async def test_who_wants_less_motion_sees_none(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    for motion, moves in (("no-preference", True), ("reduce", False)):
        person = await visitors.at(
            f"/sales/{sale}", shop.token(await shop.customer("calm")), **PHONE, reduced_motion=motion
        )
        await expect(person.page.locator("#buy-button")).to_be_enabled()
        for bought in (1, 2):
            await person.buy()
            await expect(person.purchases).to_have_count(bought)
            await expect(person.page.locator("#buy-button")).to_be_enabled()
        async with person.page.expect_response(lambda response: response.status == 429):
            await person.buy()
        await expect(person.page.locator(".spinner")).to_be_visible()
        assert (await person.page.evaluate("document.getAnimations().length") > 0) is moves


async def test_a_buyer_needs_no_mouse(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale()
    person = await visitors.at(f"/sales/{sale}", shop.token(await shop.customer("keys")))
    keyboard = person.page.keyboard

    async def go_to(selector: str) -> None:
        for _ in range(20):
            await keyboard.press("Tab")
            if await person.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                break
        else:
            raise AssertionError(f"no way to {selector} by the keyboard")
        style = await person.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", "nobody sees where the keyboard is"

    await expect(person.page.locator("#buy-button")).to_be_enabled()
    await go_to(".skip")
    await keyboard.press("Enter")
    await go_to("#buy-button")
    await keyboard.press("Enter")
    await person.has_state("CONFIRMED")
    await go_to("#purchases button:nth-of-type(3)")
    await keyboard.press("Enter")
    dialog = person.page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Not now")).to_be_focused()
    await keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(person.purchases.get_by_role("button", name="Refund")).to_be_focused()
    await person.has_state("CONFIRMED")


async def test_the_operators_focus_and_open_details_survive_updates(shop: Shop, visitors: Visitors) -> None:
    sale = await shop.sale("Focus Fund")
    board = await visitors.at("/operator", shop.token("olga", operator=True))
    card = board.page.locator(f'[data-sale="{sale}"]')
    await card.get_by_text("Purchases by outcome").click()
    pause = card.get_by_role("button", name="Pause", exact=True)
    await pause.focus()
    for bought in (1, 2):
        await shop.bought(sale, await shop.customer("buyer"))
        await expect(card.locator(".figure.is-sold dd")).to_have_text(str(bought))
        await expect(pause).to_be_focused()
    await expect(card.locator("details")).to_have_attribute("open", "")
