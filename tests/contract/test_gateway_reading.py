"""Reading over HTTP: purchases with long polls, sales, stock and its stream, balances, health."""

import asyncio

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, Harness, harness, until

ID = "9a6f4c1e-0d1b-5a55-8c7e-5f1f2f1d9b3a"


def _with_purchase(h: Harness, user: str = "rich") -> None:
    h.purchases.purchases[ID] = purchase.Purchase(
        purchase_id=ID,
        user_id=user,
        sale_id=SALE,
        quantity=2,
        amount=Money(amount_minor=5000, currency_code="EUR"),
        state=purchase.PURCHASE_STATE_RESERVED,
    )


async def test_a_purchase_is_read_by_its_owner_and_is_404_for_anybody_else() -> None:
    async with harness() as h:
        _with_purchase(h)
        shown = (await h.get(f"/v1/purchases/{ID}", "rich")).json
        assert shown["state"] == "RESERVED"
        assert shown["amount"] == {"amount_minor": 5000, "currency_code": "EUR"}
        reply = await h.get(f"/v1/purchases/{ID}", "stranger")
        assert (reply.status, reply.json["reason"]) == (404, "PURCHASE_NOT_FOUND")
        assert (await h.get(f"/v1/purchases/{ID}")).status == 401


async def test_a_failed_purchase_says_why() -> None:
    async with harness() as h:
        _with_purchase(h)
        h.purchases.purchases[ID].state = purchase.PURCHASE_STATE_FAILED
        h.purchases.purchases[ID].reason = ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS
        shown = (await h.get(f"/v1/purchases/{ID}?wait=10", "rich")).json
        assert (shown["state"], shown["reason"]) == ("FAILED", "INSUFFICIENT_FUNDS")


async def test_a_long_poll_returns_when_the_purchase_is_final() -> None:
    async with harness() as h:
        _with_purchase(h)
        waiting = asyncio.ensure_future(h.get(f"/v1/purchases/{ID}?wait=30", "rich"))
        await until(lambda: h.purchases.watching == 1)
        await h.purchases.change(ID, purchase.PURCHASE_STATE_SETTLING)
        assert not waiting.done()
        await h.purchases.change(ID, purchase.PURCHASE_STATE_CONFIRMED)
        async with asyncio.timeout(2):
            assert (await waiting).json["state"] == "CONFIRMED"


async def test_a_long_poll_that_has_waited_enough_tells_the_state_so_far() -> None:
    async with harness() as h:
        _with_purchase(h)
        reply = await h.get(f"/v1/purchases/{ID}?wait=0.3", "rich")
        assert (reply.status, reply.json["state"]) == (200, "RESERVED")
        await until(lambda: h.purchases.watching == 0)


async def test_a_long_poll_whose_client_has_gone_is_given_up() -> None:
    async with harness() as h:
        _with_purchase(h)
        _, writer = await h.connect()
        head = f"GET /v1/purchases/{ID}?wait=30 HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}"
        writer.write(f"{head}\r\n\r\n".encode())
        await until(lambda: h.purchases.watching == 1)
        writer.close()
        await until(lambda: h.purchases.watching == 0)
        await until(lambda: h.gateway.parts.reading.waits == 0)


async def test_long_polls_beyond_the_bound_are_answered_at_once() -> None:
    async with harness(waits_max=1) as h:
        _with_purchase(h)
        waiting = asyncio.ensure_future(h.get(f"/v1/purchases/{ID}?wait=30", "rich"))
        await until(lambda: h.purchases.watching == 1)
        assert (await h.get(f"/v1/purchases/{ID}?wait=30", "rich")).json["state"] == "RESERVED"
        h.gateway.parts.draining.set()
        async with asyncio.timeout(2):
            assert (await waiting).json["state"] == "RESERVED", "a long poll ends when the gateway drains"


async def test_a_long_poll_of_an_unknown_purchase_is_404() -> None:
    async with harness() as h:
        assert (await h.get(f"/v1/purchases/{ID}?wait=5", "rich")).status == 404


async def test_a_purchase_is_cancelled_by_its_owner_only() -> None:
    async with harness() as h:
        _with_purchase(h)
        headers = {"authorization": f"Bearer {issue(SECRET, 'stranger')}"}
        assert (await h.request("DELETE", f"/v1/purchases/{ID}", headers)).status == 404
        headers = {"authorization": f"Bearer {issue(SECRET, 'rich')}"}
        reply = await h.request("DELETE", f"/v1/purchases/{ID}", headers)
        assert (reply.status, reply.json["state"]) == (200, "CANCELLED")


async def test_a_sale_that_everybody_looks_at_is_asked_for_once() -> None:
    async with harness() as h:
        first = await h.get(f"/v1/sales/{SALE}")
        assert first.json["unit_price"] == {"amount_minor": 2500, "currency_code": "EUR"}
        for _ in range(20):
            assert (await h.get(f"/v1/sales/{SALE}")).status == 200
        assert h.inventories.reads <= 2
        assert (await h.get(f"/v1/sales/{OTHER_SALE}")).status == 404


async def test_stock_is_answered_from_the_stream_without_a_call() -> None:
    async with harness() as h:
        await h.followed()
        before = h.inventories.reads
        shown = (await h.get(f"/v1/sales/{SALE}/stock")).json
        assert shown == {
            "sale_id": SALE,
            "available": 5,
            "reserved": 0,
            "sold": 0,
            "total": 5,
            "waiting": 0,
            "open": True,
        }
        assert h.inventories.reads == before
        assert (await h.get(f"/v1/sales/{OTHER_SALE}/stock")).status == 404


async def test_reads_beyond_the_bound_are_429() -> None:
    async with harness(reads_max=1) as h:
        h.gateway.parts.reading.reads = 1
        reply = await h.get("/v1/balance", "rich")
        assert (reply.status, reply.json["reason"]) == (429, "OVERLOADED")


async def test_a_balance_is_one_s_own() -> None:
    async with harness() as h:
        assert (await h.get("/v1/balance", "rich")).json["available_minor"] == 7500
        assert (await h.get("/v1/balance?currency=USD", "rich")).json["reason"] == "ACCOUNT_NOT_FOUND"
        assert (await h.get("/v1/balance", "poor")).status == 404


async def test_balances_asked_for_together_share_a_call_and_each_is_one_s_own() -> None:
    users = [f"user-{number}" for number in range(1, 31)]
    async with harness() as h:
        h.balances.answering.clear()
        first = asyncio.ensure_future(h.get("/v1/balance", "rich"))
        await until(lambda: len(h.balances.calls) == 1)
        asked = [asyncio.ensure_future(h.get("/v1/balance", user)) for user in [*users, "nobody", users[0]]]
        await until(lambda: h.gateway.parts.reading.reads == 1 + len(asked))
        h.balances.answering.set()
        *known, nobody, again = await asyncio.gather(*asked)
        assert (await first).json["balance_minor"] == 10_000
        assert [reply.json["balance_minor"] for reply in known] == list(range(1, 31))
        assert (nobody.status, again.json["balance_minor"]) == (404, 1)
        assert [sorted(users) for users in h.balances.calls[1:]] == [sorted([*users, "nobody"])]


async def test_a_balance_service_that_does_not_answer_is_504() -> None:
    async with harness(read_timeout_ms=100) as h:
        h.balances.answering.clear()
        replies = await asyncio.gather(*(h.get("/v1/balance", user) for user in ("rich", "user-1", "user-2")))
        assert {reply.status for reply in replies} == {504}
        h.balances.answering.set()
        assert (await h.get("/v1/balance", "rich")).status == 200


async def test_health_follows_the_purchase_service() -> None:
    async with harness() as h:
        assert (await h.get("/healthz")).status == 200
        await h.server._set_health(2)
        await until(lambda: not h.gateway.parts.upstream.serving)
        reply = await h.get("/healthz")
        assert (reply.status, reply.json["state"]) == (503, "purchase service unreachable")
