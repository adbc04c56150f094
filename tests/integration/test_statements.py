"""A sale's statement: what was sold and paid adds up with the books of the other services, and everybody is in it."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from purchase_svc import words
from purchase_svc.purchase import PurchaseState
from tests.support.life_rig import LifeRig, error_of, life_rig, name_of
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE
from tests.support.waiting import eventually

_R, _S = ErrorReason, PurchaseState


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    async with life_rig(servers) as made:
        yield made


def counts(statement: pb.GetSaleStatementResponse) -> dict[tuple[str, int], tuple[int, int]]:
    """Purchases and units that won nothing, by state and reason; with the words that belong to them."""
    for each in statement.non_win_counts:
        assert each.words == words.of_non_win(PurchaseState(name_of(each.state)), each.reason)
    return {(name_of(each.state), each.reason): (each.purchases, each.units) for each in statement.non_win_counts}


async def booked(rig: LifeRig) -> int:
    """What the ledger has for the sale, cents."""
    request = balance_pb.ListLedgerEntriesRequest(account=f"sale:{rig.sale_id}", page_size=10_000)
    return sum(each.amount.amount_minor for each in (await rig.services.balance.ListLedgerEntries(request)).entries)


async def test_a_closed_sale_is_stated_in_full_and_adds_up(rig: LifeRig) -> None:
    await rig.services.new_sale(10)
    rich, poor = [f"rich{n}" for n in range(6)], [f"poor{n}" for n in range(3)]
    await rig.services.fund(rich)
    await rig.services.fund(poor, 1)
    cancelled = await rig.buy("quitter")
    await rig.cancel(cancelled.purchase_id)
    opened = await rig.statement()
    assert (opened.final, opened.total, opened.sold_units, opened.unfinished_purchases) == (False, 10, 0, 0)
    async with rig.services.worker():
        bought = [each.purchase_id for each in await rig.buy_all(rich[:5], 2)]
        await rig.finished(bought)
        late = [each.purchase_id for each in await rig.buy_all([*poor, rich[5]], waitlist=True)]
        await rig.refund(bought[0])
        await rig.until(bought[0], "REFUNDED")
        # Two units came back: those who cannot pay had them one after the other, and rich5 has one of them.
        assert name_of((await rig.until(late[3], "CONFIRMED")).state) == "CONFIRMED"
        waiting = await rig.buy("hopeful", 2, waitlist=True)
        assert name_of(waiting.state) == "WAITLISTED"
        ids = [cancelled.purchase_id, *bought, *late, waiting.purchase_id]
        before = await rig.statement()
        assert (before.final, before.unfinished_purchases) == (False, 1)
        await rig.close_sale()
        await rig.finished(ids)

        async def is_final() -> bool:
            return (await rig.statement()).final

        await eventually(is_final)
    statement = await rig.statement()
    assert statement.sale_id == rig.sale_id
    assert (statement.sold_units, statement.sold_purchases, statement.unfinished_purchases) == (9, 5, 0)
    assert counts(statement) == {
        ("CANCELLED", 0): (1, 1),
        ("REFUNDED", 0): (1, 2),
        ("FAILED", _R.ERROR_REASON_INSUFFICIENT_FUNDS): (3, 3),
        ("FAILED", _R.ERROR_REASON_SALE_CLOSED): (1, 2),
    }
    assert (statement.captured.amount_minor, statement.refunded.amount_minor) == (11 * PRICE, 2 * PRICE)
    assert {statement.captured.currency_code, statement.refunded.currency_code} == {"EUR"}
    assert await booked(rig) == statement.captured.amount_minor - statement.refunded.amount_minor
    assert statement.captured.amount_minor - statement.refunded.amount_minor == statement.sold_units * PRICE
    assert (await rig.services.stock(inventory_pb.STOCK_SOURCE_BOOK))[2] == statement.sold_units
    # Everybody is either among the winners or named with the reason.
    assert sum(each.purchases for each in statement.non_win_counts) + statement.sold_purchases == len(ids)
    named = {each.purchase_id: (name_of(each.state), each.reason) for each in statement.non_wins}
    assert named == {
        cancelled.purchase_id: ("CANCELLED", 0),
        bought[0]: ("REFUNDED", 0),
        waiting.purchase_id: ("FAILED", _R.ERROR_REASON_SALE_CLOSED),
        **dict.fromkeys(late[:3], ("FAILED", _R.ERROR_REASON_INSUFFICIENT_FUNDS)),
    }
    await rig.services.audit()


async def test_a_refund_makes_a_final_statement_another_for_as_long_as_it_takes(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann", "bob"])
    async with rig.services.worker():
        bought = [(await rig.confirmed(user, 2)).purchase_id for user in ("ann", "bob")]
        await rig.close_sale()
    final = await rig.statement()
    assert (final.final, final.sold_units) == (True, 4)
    await rig.refund(bought[0])
    under_way = await rig.statement()
    assert (under_way.final, under_way.sold_units, under_way.unfinished_purchases) == (False, 4, 1)
    assert (under_way.captured.amount_minor, under_way.refunded.amount_minor) == (4 * PRICE, 0)
    async with rig.services.worker():
        await rig.until(bought[0], "REFUNDED")
    again = await rig.statement()
    assert (again.final, again.sold_units, again.sold_purchases) == (True, 2, 1)
    assert (again.captured.amount_minor, again.refunded.amount_minor) == (4 * PRICE, 2 * PRICE)
    # Nothing is on sale again in a sale that is over.
    assert (await error_of(rig.buy("cid"))).reason == _R.ERROR_REASON_SALE_NOT_OPEN


async def test_units_that_a_buyer_left_behind_keep_a_statement_from_being_final(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    (wish,) = rig.services.wishes(["gone"])
    await rig.services.reserve([wish])
    await rig.close_sale()
    statement = await rig.statement()
    assert (statement.final, statement.unfinished_purchases) == (False, 0)
    async with rig.services.worker():

        async def is_final() -> bool:
            return (await rig.statement()).final

        await eventually(is_final)
    assert counts(await rig.statement()) == {("FAILED", _R.ERROR_REASON_ABANDONED): (1, 1)}


async def test_those_who_won_nothing_come_in_pages_each_once(rig: LifeRig) -> None:
    await rig.services.new_sale(100)
    users = [f"user{n}" for n in range(25)]
    ids = [each.purchase_id for each in await rig.buy_all(users)]
    for each in ids[:23]:
        await rig.cancel(each)
    seen: list[pb.NonWin] = []
    page: dict[str, Any] = {"page_size": 10}
    sizes = []
    while True:
        statement = await rig.statement(**page)
        seen += statement.non_wins
        sizes.append(len(statement.non_wins))
        if not statement.next_page_token:
            break
        page["page_token"] = statement.next_page_token
    assert sizes == [10, 10, 3]
    assert [each.purchase_id for each in seen] == sorted(ids[:23])
    assert {each.user_id for each in seen} == set(users[:23])
    assert all(each.quantity == 1 and each.end_time.seconds for each in seen)


async def test_a_statement_of_no_sale_is_refused_and_one_without_inventory_unavailable(rig: LifeRig) -> None:
    rig.services.sale_id = str(uuid.uuid4())
    assert (await error_of(rig.statement())).reason == _R.ERROR_REASON_SALE_NOT_FOUND
    await rig.services.new_sale(1)
    assert (await error_of(rig.statement(page_token="x"))).violations[0][0] == "page_token"
    assert (await error_of(rig.statement(page_size=-1))).violations[0][0] == "page_size"
    await rig.services.inventory_service.stop()
    assert (await error_of(rig.statement())).reason == _R.ERROR_REASON_UNAVAILABLE
    await rig.services.inventory_service.start()
    rig.services.sale_id = "junk"
    assert (await error_of(rig.statement())).violations[0][0] == "sale_id"
