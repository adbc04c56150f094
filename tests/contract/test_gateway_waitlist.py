"""Waiting in line over HTTP: who is let in to ask for it, what it is told, and what refusing the others costs."""

import asyncio

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from mesh.identity import fingerprint, purchase_id
from tests.contract.gateway_harness import SALE, Harness, Reply, harness, reading, until

WISH = b'{"quantity":1,"waitlist":true}'
#: As long as a wish, and none.
PADDED = b'{"quantity":1,"waitlist":false}'
BUY = f"/v1/sales/{SALE}/purchases"


def _waiting(position: int, estimated_wait_s: int) -> purchase.CreatePurchaseOutcome:
    return purchase.CreatePurchaseOutcome(
        state=purchase.PURCHASE_STATE_WAITLISTED,
        waitlist_position=position,
        estimated_wait_s=estimated_wait_s,
    )


def _is_sold_out(reply: Reply) -> bool:
    return (reply.status, reply.json.get("reason")) == (409, "SOLD_OUT")


async def _sold_out(h: Harness, waiting: int = 0, available: int = 0) -> None:
    await h.inventories.push(reading(available, waiting=waiting))
    await h.followed()
    await h.stock_is(available)


async def _chunked(h: Harness, body: bytes) -> bytes:
    head = f"POST {BUY} HTTP/1.1\r\nhost: t\r\nidempotency-key: chunked\r\ntransfer-encoding: chunked\r\n\r\n"
    return await h.raw(head.encode() + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")


async def test_who_asks_for_the_line_of_a_sold_out_sale_is_told_its_place() -> None:
    async with harness() as h:
        await _sold_out(h, waiting=16)
        h.purchases.outcome = _waiting(17, 3)
        reply = await h.buy("key", body=b'{"quantity":2,"waitlist":true}')
        known_id = str(purchase_id("rich", SALE, "key"))
        assert reply.status == 202
        assert reply.headers["location"] == f"/v1/purchases/{known_id}"
        assert reply.json == {
            "purchase_id": known_id,
            "sale_id": SALE,
            "quantity": 2,
            "state": "WAITLISTED",
            "waitlist_position": 17,
            "estimated_wait_s": 3,
        }
        [[sent]] = h.purchases.batches
        assert (sent.quantity, sent.waitlist) == (2, True)


async def test_a_place_that_is_not_known_is_null_and_not_zero() -> None:
    async with harness() as h:
        h.purchases.outcome = _waiting(0, 0)
        shown = (await h.buy("key", body=WISH)).json
        assert (shown["waitlist_position"], shown["estimated_wait_s"]) == (None, None)


async def test_the_shortest_wish_and_a_chunked_one_are_heard() -> None:
    async with harness() as h:
        await _sold_out(h)
        h.purchases.outcome = _waiting(1, 1)
        assert (await h.buy("short", body=b'{"waitlist":true}')).json["state"] == "WAITLISTED"
        assert (await h.buy("long", body=WISH + b" " * 2000)).json["state"] == "WAITLISTED"
        # Without a token, so that only a wish that was read gets as far as to be asked for one.
        assert (await _chunked(h, WISH)).startswith(b"401")
        assert (await _chunked(h, PADDED)).startswith(b"409")


@pytest.mark.parametrize("sole", [True, False])
@pytest.mark.parametrize(("available", "waiting"), [(0, 0), (0, 5), (3, 5)], ids=str)
async def test_refusing_whoever_does_not_ask_for_the_line_costs_nothing_behind_the_gateway(
    available: int, waiting: int, sole: bool
) -> None:
    async with harness(sole=sole) as h:
        await _sold_out(h, waiting, available)
        before = h.inventories.reads
        bodies = [None, b"", b"{}", b'{"quantity":1}', PADDED, PADDED + b" " * 2000]
        replies = await asyncio.gather(
            *(
                h.request("POST", path, {"idempotency-key": f"key-{number}-{index}"}, body)
                for number in range(20)
                for index, body in enumerate(bodies)
                for path in (BUY, BUY.replace(SALE, SALE.upper()))
            )
        )
        assert all(_is_sold_out(reply) for reply in replies)
        assert h.purchases.batches == []
        assert h.inventories.watches == [SALE]
        # One gateway of several makes sure by a reading now and then, however many it refuses.
        assert h.inventories.reads == before if sole else h.inventories.reads - before < 50


async def test_a_body_too_short_for_a_wish_is_refused_before_it_has_come() -> None:
    async with harness() as h:
        await _sold_out(h)
        head = f"POST {BUY} HTTP/1.1\r\nhost: t\r\nidempotency-key: key\r\ncontent-length: "
        assert (await h.raw(f"{head}16\r\n\r\n".encode())).startswith(b"409")
        reader, writer = await h.connect()
        writer.write(f"{head}17\r\n\r\n".encode())
        await until(lambda: h.gateway.app.in_flight == 1)
        writer.write(b'{"quantity" : 1 }')
        assert (await reader.readline()).startswith(b"HTTP/1.1 409")


async def test_what_is_no_purchase_is_400_and_not_sold_out_once_it_had_to_be_read() -> None:
    async with harness() as h:
        await _sold_out(h)
        assert (await h.buy("key", body=b'{"waitlist":"please"}')).status == 400
        assert h.purchases.batches == []


async def test_while_anybody_waits_a_newcomer_gets_nothing_though_units_are_available() -> None:
    async with harness() as h:
        await _sold_out(h, waiting=1, available=3)
        assert _is_sold_out(await h.buy("newcomer"))
        assert h.purchases.batches == []
        await h.inventories.push(reading(3, waiting=0, reset=False))
        known = h.gateway.parts.followers.known(SALE)
        assert known is not None
        await until(lambda: known.stock is not None and known.stock.waiting == 0)
        assert (await h.buy("newcomer")).status == 202


async def test_who_waits_in_line_is_told_so_when_it_repeats_its_request_without_the_wish() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, waiting=1, added=[fingerprint("waiter")]))
        await h.followed()
        h.purchases.outcome = _waiting(1, 1)
        assert (await h.buy("waiter")).json["state"] == "WAITLISTED"
        assert _is_sold_out(await h.buy("other"))


async def test_a_wish_that_waited_while_the_last_unit_went_is_sent_all_the_same() -> None:
    async with harness(in_flight_max=1, batch_max=1) as h:
        await h.followed()
        h.purchases.open.clear()
        first = asyncio.ensure_future(h.buy("first", user="first"))
        await until(lambda: h.purchases.bought == ["first"])
        queue = [
            asyncio.ensure_future(h.buy(f"key-{i}", user=f"u{i}", body=WISH if i % 2 else PADDED)) for i in range(10)
        ]
        await until(lambda: h.gateway.parts.buying.queued == 10)
        await h.inventories.push(reading(0, added=[fingerprint("first")], reset=False))
        await h.stock_is(0)
        h.purchases.open.set()
        assert [(await each).status for each in queue] == [202 if i % 2 else 409 for i in range(10)]
        assert (await first).status == 202


async def test_a_full_line_is_409_and_what_it_refused_holds_nothing() -> None:
    async with harness() as h:
        await _sold_out(h)
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_WAITLIST_FULL)
        reply = await h.buy("key", body=WISH)
        assert (reply.status, reply.json["reason"]) == (409, "WAITLIST_FULL")
        assert _is_sold_out(await h.buy("key"))
        assert len(h.purchases.batches) == 1


async def test_who_may_not_buy_is_403() -> None:
    async with harness() as h:
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_NOT_ELIGIBLE)
        reply = await h.buy("key", body=WISH)
        assert (reply.status, reply.json["reason"]) == (403, "NOT_ELIGIBLE")


async def test_wishes_beyond_what_can_be_answered_in_time_are_shed_at_the_door() -> None:
    async with harness(queue_min=5, queue_max=5, in_flight_max=1, batch_max=1) as h:
        await _sold_out(h)
        h.purchases.outcome = _waiting(1, 1)
        h.purchases.open.clear()
        let_in = [asyncio.ensure_future(h.buy(f"in-{i}", user=f"u{i}", body=WISH)) for i in range(5)]
        await until(lambda: h.gateway.parts.buying.queued == 4)
        for i in range(5):
            reply = await h.buy(f"out-{i}", user=f"o{i}", body=WISH)
            assert (reply.status, reply.json["reason"]) == (429, "OVERLOADED")
            assert _is_sold_out(await h.buy(f"plain-{i}", user=f"o{i}")), "sold out is told all the same"
        assert h.gateway.parts.metrics.shed_at_door == 5
        h.purchases.open.set()
        assert {each.status for each in await asyncio.gather(*let_in)} == {202}
        assert not any(each.startswith("out") for each in h.purchases.bought)
