"""Reading over HTTP: purchases with long polls, sales, stock and its stream, balances, health."""

import asyncio
import json

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, Harness, harness, reading, until

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
        assert shown == {"sale_id": SALE, "available": 5, "reserved": 0, "sold": 0, "total": 5, "open": True}
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


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readline()).strip(), 16)
    octets = await reader.readexactly(size)
    await reader.readexactly(2)
    return octets


async def _open_stream(h: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await h.connect()
    writer.write(f"GET /v1/sales/{SALE}/stock/stream HTTP/1.1\r\nhost: t\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"text/event-stream" in head
    assert await _chunk(reader) == b"retry: 1000\n\n"
    return reader, writer


async def test_the_stock_stream_tells_the_present_stock_and_each_change() -> None:
    async with harness() as h:
        reader, writer = await _open_stream(h)
        async with asyncio.timeout(5):
            first = await _chunk(reader)
            assert first.startswith(b"event: stock\ndata: ")
            assert json.loads(first.partition(b"data: ")[2])["available"] == 5
            await h.inventories.push(reading(3, reset=False))
            assert json.loads((await _chunk(reader)).partition(b"data: ")[2])["available"] == 3
        writer.close()
        await until(lambda: h.gateway.parts.streams.open == 0)


async def test_stock_streams_are_bounded_in_number_and_in_time_and_end_when_the_gateway_drains() -> None:
    async with harness(streams_max=2, stream_s=1.0) as h:
        (reader, writer), (_, other) = await _open_stream(h), await _open_stream(h)
        assert (await h.get(f"/v1/sales/{SALE}/stock/stream")).status == 429
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n0\r\n\r\n")
        await until(lambda: h.gateway.parts.streams.open == 0)
        writer.close()
        other.close()
        reader, writer = await _open_stream(h)
        h.gateway.parts.draining.set()
        async with asyncio.timeout(0.9):
            await reader.readuntil(b"\r\n0\r\n\r\n")


async def test_many_viewers_share_a_budget_of_events_and_all_see_the_last_reading() -> None:
    async with harness(pushes_per_s=20.0) as h:
        loop, viewers = asyncio.get_running_loop(), [await _open_stream(h) for _ in range(8)]
        seen: list[list[int]] = [[] for _ in viewers]

        async def view(reader: asyncio.StreamReader, shown: list[int]) -> None:
            while not shown or shown[-1] != 1:
                event = await _chunk(reader)
                if event.startswith(b"event"):
                    shown.append(json.loads(event.partition(b"data: ")[2])["available"])

        views = [asyncio.create_task(view(reader, shown)) for (reader, _), shown in zip(viewers, seen, strict=True)]
        began = loop.time()
        for available in range(40, 0, -1):
            await h.inventories.push(reading(available, reset=False))
            await asyncio.sleep(0.02)
        await asyncio.wait_for(asyncio.gather(*views), 5)
        later = [event for shown in seen for event in shown[1:]]
        assert len(later) <= 20 * (loop.time() - began) + 4, "4: two rounds' worth saved up"
        assert all(shown == sorted(shown, reverse=True) for shown in (each[1:] for each in seen))
        for _, writer in viewers:
            writer.close()


async def test_a_stream_of_an_unknown_sale_is_404() -> None:
    async with harness() as h:
        assert (await h.get(f"/v1/sales/{OTHER_SALE}/stock/stream")).status == 404


async def test_strangers_cannot_make_the_gateway_follow_one_sale_after_another() -> None:
    async with harness() as h:
        for i in range(100):
            await h.get(f"/v1/sales/3a6f4c1e-0d1b-4a55-8c7e-{i:012d}/stock/stream")
        assert len(h.inventories.watches) < 60
        await h.followed()


async def test_health_follows_the_purchase_service() -> None:
    async with harness() as h:
        assert (await h.get("/healthz")).status == 200
        await h.server._set_health(2)
        await until(lambda: not h.gateway.parts.upstream.serving)
        reply = await h.get("/healthz")
        assert (reply.status, reply.json["state"]) == (503, "purchase service unreachable")
