"""Buying over HTTP: what a buyer is told, and in which order a request is checked."""

import asyncio
from collections import Counter

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from mesh.errors import DomainError
from mesh.identity import fingerprint, purchase_id
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, harness, reading, until


async def test_an_accepted_purchase_is_answered_202_with_its_location() -> None:
    async with harness() as h:
        reply = await h.buy("key-1", body=b'{"quantity": 2}')
        known_id = str(purchase_id("rich", SALE, "key-1"))
        assert reply.status == 202
        assert reply.headers["location"] == f"/v1/purchases/{known_id}"
        assert reply.json == {"purchase_id": known_id, "sale_id": SALE, "quantity": 2, "state": "RESERVED"}
        [[sent]] = h.purchases.batches
        assert (sent.user_id, sent.sale_id, sent.request_id, sent.quantity) == ("rich", SALE, "key-1", 2)


async def test_a_purchase_without_a_body_is_for_one_share() -> None:
    async with harness() as h:
        assert (await h.buy("no-body", body=None)).status == 202
        assert (await h.buy("empty", body=b"")).status == 202
        assert (await h.buy("empty-object", body=b"{}")).status == 202
        assert [each.quantity for batch in h.purchases.batches for each in batch] == [1, 1, 1]


async def test_every_buyer_of_a_crowd_gets_its_own_answer() -> None:
    async with harness() as h:
        # A reading of fewer units than there are buyers would make some of them wait for a turn.
        await h.inventories.push(reading(available=300, total=300))
        h.purchases.open.clear()
        crowd = [asyncio.ensure_future(h.buy(f"key-{i}", user=f"user-{i}")) for i in range(300)]
        # Every one of them is in a call or waits for one.
        await until(lambda: h.gateway.parts.buying.queued + sum(map(len, h.purchases.batches)) == 300)
        h.purchases.open.set()
        for i, reply in enumerate(await asyncio.gather(*crowd)):
            assert reply.json["purchase_id"] == str(purchase_id(f"user-{i}", SALE, f"key-{i}"))
        assert len(h.purchases.batches) < 30, "requests of one moment share calls"
        assert all(len(batch) <= 250 for batch in h.purchases.batches)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (ErrorReason.ERROR_REASON_SOLD_OUT, 409),
        (ErrorReason.ERROR_REASON_SALE_NOT_OPEN, 409),
        (ErrorReason.ERROR_REASON_USER_LIMIT_REACHED, 409),
        (ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, 409),
        (ErrorReason.ERROR_REASON_RESERVATION_RELEASED, 409),
        (ErrorReason.ERROR_REASON_SALE_NOT_FOUND, 404),
        (ErrorReason.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED, 400),
        (ErrorReason.ERROR_REASON_OVERLOADED, 429),
        (ErrorReason.ERROR_REASON_UNAVAILABLE, 503),
        (ErrorReason.ERROR_REASON_STOCK_RECALIBRATING, 503),
        (12345, 500),
    ],
)
async def test_each_reason_of_an_outcome_has_its_status(reason: int, status: int) -> None:
    async with harness() as h:
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=reason, retry_after_ms=0)  # type: ignore[arg-type]
        reply = await h.buy("key")
        assert reply.status == reply.json["status"] == status
        assert reply.headers["content-type"] == "application/problem+json"
        assert ("retry-after" in reply.headers) == (status in (429, 503))
        assert ("retry_after_ms" in reply.json) == (status in (429, 503))


async def test_the_service_s_own_delay_is_passed_on() -> None:
    async with harness() as h:
        h.purchases.outcome = purchase.CreatePurchaseOutcome(
            reason=ErrorReason.ERROR_REASON_OVERLOADED, retry_after_ms=1234
        )
        reply = await h.buy("key")
        assert (reply.headers["retry-after"], reply.json["retry_after_ms"]) == ("2", 1234)


async def test_a_service_that_is_away_is_503_with_a_delay_and_never_429() -> None:
    async with harness() as h:
        h.purchases.failure = DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        reply = await h.buy("key")
        assert (reply.status, reply.json["reason"]) == (503, "UNAVAILABLE")
        assert reply.headers["retry-after"] == "1"


async def test_a_service_that_does_not_answer_in_time_is_504_and_the_same_key_may_be_sent_again() -> None:
    async with harness(purchase_timeout_ms=200) as h:
        h.purchases.open.clear()
        reply = await h.buy("key")
        assert (reply.status, reply.json["reason"]) == (504, "DEADLINE_EXCEEDED")
        assert reply.headers["retry-after"] == "1"
        h.purchases.open.set()
        assert (await h.buy("key")).status == 202


async def test_a_request_is_refused_429_when_more_waits_than_can_be_answered_in_time() -> None:
    async with harness(queue_min=5, queue_max=5, in_flight_max=1, batch_max=1) as h:
        h.purchases.open.clear()
        let_in = [asyncio.ensure_future(h.buy("in-0", user="u0"))]
        await until(lambda: h.purchases.bought == ["in-0"])
        let_in += [asyncio.ensure_future(h.buy(f"in-{i}", user=f"u{i}")) for i in range(1, 5)]
        await until(lambda: h.gateway.parts.buying.queued == 4)
        replies = [await h.buy(f"out-{i}", user=f"o{i}") for i in range(5)]
        assert {(each.status, each.json["reason"]) for each in replies} == {(429, "OVERLOADED")}
        assert all(int(each.headers["retry-after"]) >= 1 for each in replies)
        assert all(50 <= each.json["retry_after_ms"] <= 5000 for each in replies)
        h.purchases.open.set()
        assert {each.status for each in await asyncio.gather(*let_in)} == {202}
        assert not any(each.startswith("out") for each in h.purchases.bought), "a refused request costs no call"


async def test_what_waits_too_long_is_refused_without_having_been_sent() -> None:
    async with harness(queue_min=100, in_flight_max=1, batch_max=1, queue_wait_ms=100) as h:
        h.purchases.open.clear()
        first = asyncio.ensure_future(h.buy("first", user="u0"))
        await until(lambda: h.purchases.bought == ["first"])
        loop = asyncio.get_running_loop()
        start = loop.time()
        late = await asyncio.gather(*(h.buy(f"late-{i}", user=f"u{i}") for i in range(1, 9)))
        assert {(each.status, each.json["reason"]) for each in late} == {(429, "OVERLOADED")}
        assert loop.time() - start < 1.0
        h.purchases.open.set()
        assert (await first).status == 202
        assert h.purchases.bought == ["first"]


async def test_a_user_who_sends_a_burst_and_one_is_refused_exactly_once() -> None:
    async with harness(user_burst=10, user_rate_per_s=0.01) as h:
        replies = [await h.buy(f"key-{i}") for i in range(11)]
        assert Counter(each.status for each in replies) == {202: 10, 429: 1}
        assert replies[-1].json["reason"] == "USER_RATE_LIMITED"
        assert replies[-1].json["retry_after_ms"] > 50_000
        assert (await h.buy("key", user="another")).status == 202


async def test_a_sold_out_sale_is_refused_at_the_door_even_without_a_token_and_sends_nothing_on() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, added=[fingerprint("winner")]))
        await h.followed()
        reply = await h.request("POST", f"/v1/sales/{SALE}/purchases", {"idempotency-key": "loser"}, b'{"quantity":1}')
        assert (reply.status, reply.json["reason"]) == (409, "SOLD_OUT")
        upper = await h.request("POST", f"/v1/sales/{SALE.upper()}/purchases", {"idempotency-key": "loser"})
        assert (upper.status, upper.json["reason"]) == (409, "SOLD_OUT")
        assert h.purchases.batches == []


async def test_a_winner_who_repeats_is_never_told_it_lost() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, added=[fingerprint("winner")]))
        await h.followed()
        assert (await h.buy("loser")).status == 409
        assert (await h.buy("winner")).status == 202


async def test_a_request_just_sent_on_is_not_refused_by_an_older_reading() -> None:
    async with harness() as h:
        await h.followed()
        assert (await h.buy("winner")).status == 202
        # This reading was made before the winner got its unit.
        await h.inventories.push(reading(0, reset=False))
        await h.stock_is(0)
        assert (await h.buy("loser")).status == 409
        assert (await h.buy("winner")).status == 202


async def test_a_unit_that_comes_back_is_on_sale_at_once() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0))
        await h.followed()
        assert (await h.buy("key")).status == 409
        await h.inventories.push(reading(1, reset=False))
        await h.stock_is(1)
        assert (await h.buy("key")).status == 202


async def test_a_stream_that_falls_silent_lapses_and_requests_pass() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0))
        await h.followed()
        assert (await h.buy("key")).status == 409
        h.inventories.silent = True
        loop, known = asyncio.get_running_loop(), h.gateway.parts.followers.known(SALE)
        assert known is not None
        await until(lambda: known.fresh_stock(loop.time()) is None)
        assert (await h.buy("key")).status == 202


async def test_a_gate_that_is_unavailable_is_not_called_sold_out() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0))
        await h.followed()
        unknown = reading(0, reset=False)
        unknown.ClearField("stock")
        await h.inventories.push(unknown)
        known = h.gateway.parts.followers.known(SALE)
        assert known is not None
        await until(lambda: known.stock is None)
        assert (await h.buy("key")).status == 202


async def test_a_paused_sale_is_left_to_the_services_to_refuse() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, is_open=False))
        await h.followed()
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_SALE_NOT_OPEN)
        assert (await h.buy("key")).json["reason"] == "SALE_NOT_OPEN"


async def test_a_queue_built_up_before_the_last_unit_went_is_answered_sold_out_without_a_call() -> None:
    async with harness(in_flight_max=1, batch_max=1) as h:
        await h.followed()
        h.purchases.open.clear()
        first = asyncio.ensure_future(h.buy("first", user="first"))
        await until(lambda: h.purchases.bought == ["first"])
        queue = [asyncio.ensure_future(h.buy(f"key-{i}", user=f"u{i}")) for i in range(20)]
        await until(lambda: h.gateway.parts.buying.queued == 20)
        await h.inventories.push(reading(0, added=[fingerprint("first"), fingerprint("key-7")], reset=False))
        await h.stock_is(0)
        h.purchases.open.set()
        statuses = [(await each).status for each in queue]
        assert statuses == [202 if i == 7 else 409 for i in range(20)]
        assert (await first).status == 202
        assert h.purchases.bought == ["first", "key-7"]


async def test_an_unknown_sale_is_404_and_soon_costs_no_call() -> None:
    async with harness() as h:
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        assert (await h.buy("key", sale=OTHER_SALE)).status == 404
        loop = asyncio.get_running_loop()
        await until(lambda: h.gateway.parts.followers.is_missing(OTHER_SALE, loop.time()))
        before = len(h.purchases.batches)
        assert (await h.buy("key", sale=OTHER_SALE)).json["reason"] == "SALE_NOT_FOUND"
        assert len(h.purchases.batches) == before
        assert len(h.gateway.parts.followers) == 0


async def test_a_sale_that_is_asked_for_keeps_its_place_and_a_forgotten_one_makes_room() -> None:
    async with harness(sales_max=1) as h:
        await h.inventories.push(reading(0))
        h.inventories.last[OTHER_SALE] = reading(5)
        await h.followed()
        followers = h.gateway.parts.followers
        assert (await h.buy("key", sale=OTHER_SALE)).status == 202, "not followed, and bought all the same"
        assert followers.known(OTHER_SALE) is None
        followers.by_path[f"/v1/sales/{SALE}/purchases"].asked_at -= 20
        assert (await h.buy("key")).status == 409
        assert (await h.buy("key-2", sale=OTHER_SALE)).status == 202
        assert followers.known(OTHER_SALE) is None, "a refusal at the door is asking too"
        followers.by_path[f"/v1/sales/{SALE}/purchases"].asked_at -= 20
        assert (await h.buy("key-3", sale=OTHER_SALE)).status == 202
        assert followers.known(OTHER_SALE) is not None
        assert followers.known(SALE) is None
        assert list(followers.by_path) == [f"/v1/sales/{OTHER_SALE}/purchases"]


async def test_a_sale_that_nobody_asks_for_any_more_is_followed_no_more_and_leaves_nothing_behind() -> None:
    async with harness(unasked_s=60) as h:
        await h.inventories.push(reading(0))
        await h.followed()
        followers = h.gateway.parts.followers
        followers.by_path[f"/v1/sales/{SALE}/purchases"].asked_at -= 61
        await until(lambda: not len(followers))
        await until(lambda: not h.inventories.streams)
        assert not followers.by_path
        await h.buy("key")
        await h.followed()
        assert (await h.buy("another")).status == 409, "once somebody comes after all, it is followed again"
        assert h.inventories.streams == 1


async def test_the_inventory_service_may_be_restarted_and_the_sale_is_followed_again() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0))
        await h.followed()
        h.inventories.end_streams()
        known = h.gateway.parts.followers.known(SALE)
        assert known is not None
        await until(lambda: known.stock is None)
        assert (await h.buy("key")).status == 202, "nothing is known while there is no stream"
        await h.stock_is(0)
        assert (await h.buy("other")).status == 409
        assert len(h.inventories.watches) == 2


async def test_a_request_without_a_good_token_is_401_and_makes_no_call_at_all() -> None:
    async with harness() as h:
        for authorization in ("", "Basic abc", "Bearer", "Bearer x.y.z", f"Bearer {issue('t' * 40, 'rich')}"):
            headers = {"idempotency-key": "key"} | ({"authorization": authorization} if authorization else {})
            reply = await h.request("POST", f"/v1/sales/{SALE}/purchases", headers, b"{}")
            assert (reply.status, reply.json["reason"]) == (401, "UNAUTHENTICATED")
            # Whoever sent no token is not told that it is bad.
            sent = authorization.startswith("Bearer")
            error = ', error="invalid_token"' if sent else ""
            assert reply.headers["www-authenticate"] == f'Bearer realm="flashsale"{error}'
        expired = issue(SECRET, "rich", ttl_s=-1)
        reply = await h.request("GET", "/v1/balance", {"authorization": f"Bearer {expired}"})
        assert reply.status == 401
        assert h.purchases.batches == []
        assert h.inventories.watches == [], "nor is a sale followed for somebody without a token"


async def test_what_was_let_in_is_answered_while_the_gateway_drains() -> None:
    async with harness() as h:
        h.purchases.open.clear()
        waiting = asyncio.ensure_future(h.buy("key"))
        await until(lambda: h.purchases.bought == ["key"])
        h.gateway.parts.ending.set()
        h.gateway.parts.draining.set()
        assert (await h.get("/healthz")).status == 503
        assert (await h.buy("late")).status == 503
        h.purchases.open.set()
        assert (await waiting).status == 202
