"""After buying over HTTP: one's place in line, refunds, receipts, one's own purchases; and the list of sales."""

import asyncio

from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, Harness, Reply, harness, until

ID = "9a6f4c1e-0d1b-5a55-8c7e-5f1f2f1d9b3a"


def _with_purchase(h: Harness, state: purchase.PurchaseState.ValueType, known_id: str = ID, sale: str = SALE) -> None:
    h.purchases.purchases[known_id] = purchase.Purchase(
        purchase_id=known_id,
        user_id="rich",
        sale_id=sale,
        quantity=2,
        amount=Money(amount_minor=5000, currency_code="EUR"),
        state=state,
    )


async def _send(h: Harness, method: str, path: str, user: str = "rich") -> Reply:
    return await h.request(method, path, {"authorization": f"Bearer {issue(SECRET, user)}"})


async def test_one_s_place_in_line_is_told_and_only_while_one_waits() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_WAITLISTED)
        known = h.purchases.purchases[ID]
        known.waitlist_position, known.estimated_wait_s = 1200, 3
        shown = (await h.get(f"/v1/purchases/{ID}", "rich")).json
        assert (shown["state"], shown["waitlist_position"], shown["estimated_wait_s"]) == ("WAITLISTED", 1200, 3)
        known.waitlist_position, known.estimated_wait_s = 0, 0
        shown = (await h.get(f"/v1/purchases/{ID}", "rich")).json
        assert (shown["waitlist_position"], shown["estimated_wait_s"]) == (None, None)
        known.state = purchase.PURCHASE_STATE_RESERVED
        assert "waitlist_position" not in (await h.get(f"/v1/purchases/{ID}", "rich")).json


async def test_a_long_poll_of_who_waits_in_line_returns_when_its_turn_comes() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_WAITLISTED)
        waiting = asyncio.ensure_future(h.get(f"/v1/purchases/{ID}?wait=30", "rich"))
        await until(lambda: h.purchases.watching == 1)
        await h.purchases.change(ID, purchase.PURCHASE_STATE_RESERVED)
        async with asyncio.timeout(2):
            assert (await waiting).json["state"] == "RESERVED"


async def test_a_long_poll_that_ends_in_line_tells_the_place_as_it_is_then() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_WAITLISTED)
        h.purchases.purchases[ID].waitlist_position = 9
        waiting = asyncio.ensure_future(h.get(f"/v1/purchases/{ID}?wait=0.3", "rich"))
        await until(lambda: h.purchases.watching == 1)
        h.purchases.purchases[ID].waitlist_position = 4
        assert (await waiting).json["waitlist_position"] == 4


async def test_a_long_poll_of_a_refund_returns_when_it_is_done() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_REFUNDING)
        waiting = asyncio.ensure_future(h.get(f"/v1/purchases/{ID}?wait=30", "rich"))
        await until(lambda: h.purchases.watching == 1)
        assert not waiting.done()
        await h.purchases.change(ID, purchase.PURCHASE_STATE_REFUNDED)
        async with asyncio.timeout(2):
            assert (await waiting).json["state"] == "REFUNDED"


async def test_a_refund_is_accepted_and_done_later_and_may_be_asked_for_again() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_CONFIRMED)
        for _ in range(2):
            reply = await _send(h, "POST", f"/v1/purchases/{ID}/refund")
            assert (reply.status, reply.json["state"]) == (202, "REFUNDING")
        h.purchases.purchases[ID].state = purchase.PURCHASE_STATE_REFUNDED
        reply = await _send(h, "POST", f"/v1/purchases/{ID}/refund")
        assert (reply.status, reply.json["state"]) == (200, "REFUNDED")


async def test_what_was_never_paid_is_not_refunded() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_RESERVED)
        reply = await _send(h, "POST", f"/v1/purchases/{ID}/refund")
        assert (reply.status, reply.json["reason"]) == (409, "PURCHASE_NOT_REFUNDABLE")


async def test_refunds_and_receipts_are_404_for_anybody_else_and_401_for_nobody() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_CONFIRMED)
        for method, path in (("POST", "refund"), ("GET", "receipt")):
            reply = await _send(h, method, f"/v1/purchases/{ID}/{path}", "stranger")
            assert (reply.status, reply.json["reason"]) == (404, "PURCHASE_NOT_FOUND")
            assert (await h.request(method, f"/v1/purchases/{ID}/{path}")).status == 401
        assert h.purchases.purchases[ID].state == purchase.PURCHASE_STATE_CONFIRMED
        assert (await h.request("GET", "/v1/purchases")).status == 401


async def test_refunds_are_bounded_by_the_user_s_rate() -> None:
    async with harness(user_burst=2, user_rate_per_s=0.01) as h:
        _with_purchase(h, purchase.PURCHASE_STATE_CONFIRMED)
        statuses = [(await _send(h, "POST", f"/v1/purchases/{ID}/refund")).status for _ in range(3)]
        assert statuses == [202, 202, 429]


async def test_a_receipt_tells_everything_and_null_where_there_was_nothing() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_RESERVED)
        receipt = (await h.get(f"/v1/purchases/{ID}/receipt", "rich")).json
        assert receipt["purchase"]["purchase_id"] == ID
        assert receipt["reservation"] == {
            "state": "RESERVED",
            "quantity": 2,
            "create_time": None,
            "update_time": None,
        }
        assert receipt["hold"] is None
        assert receipt["steps"] == [{"state": "RESERVED", "time": "2026-01-01T00:00:00Z", "words": "set aside"}]
        assert receipt["words"] == "it is on its way"


async def test_one_s_purchases_are_listed_and_nobody_else_s() -> None:
    async with harness() as h:
        _with_purchase(h, purchase.PURCHASE_STATE_CONFIRMED)
        other = ID.replace("9a6f", "9a70")
        _with_purchase(h, purchase.PURCHASE_STATE_FAILED, other, OTHER_SALE)
        listed = (await h.get("/v1/purchases", "rich")).json
        assert {each["purchase_id"] for each in listed["purchases"]} == {ID, other}
        assert listed["next_page_token"] == "next"
        listed = (await h.get(f"/v1/purchases?sale_id={SALE}&page_token=abc", "rich")).json
        assert [each["purchase_id"] for each in listed["purchases"]] == [ID]
        asked = h.purchases.lists[-1]
        assert (asked.user_id, asked.sale_id, asked.page_size, asked.page_token) == ("rich", SALE, 100, "abc")
        assert (await h.get("/v1/purchases", "stranger")).json["purchases"] == []


async def test_the_list_of_sales_shows_no_drafts_nor_who_runs_them_and_is_read_once_for_a_crowd() -> None:
    async with harness() as h:
        states = [state for state in inventory.SaleState.values() if state]
        h.inventories.sales = [
            inventory.Sale(sale_id=str(number), state=states[number % len(states)], state_actor="olga")
            for number in range(200)
        ]
        replies = await asyncio.gather(*(h.get("/v1/sales") for _ in range(50)))
        listed = replies[0].json["sales"]
        assert len(listed) == 100
        assert "DRAFT" not in {each["state"] for each in listed}
        assert {"OPEN", "PAUSED", "CLOSED", "SCHEDULED", "SOLD_OUT"} == {each["state"] for each in listed}
        assert [int(each["sale_id"]) for each in listed] == sorted(int(each["sale_id"]) for each in listed)
        assert all("olga" not in reply.body.decode() for reply in replies)
        assert h.inventories.lists <= 2
