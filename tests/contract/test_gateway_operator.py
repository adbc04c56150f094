"""What operators do over HTTP, and that nobody else can."""

import asyncio
import json
from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from mesh.errors import DomainError
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, Harness, harness, reading, until

ID = "9a6f4c1e-0d1b-5a55-8c7e-5f1f2f1d9b3a"
ROUTES = [
    ("GET", "overview", None),
    ("POST", f"sales/{SALE}/open", None),
    ("POST", f"sales/{SALE}/pause", None),
    ("POST", f"sales/{SALE}/close", None),
    ("POST", f"sales/{SALE}/total", b'{"total":7}'),
    ("POST", f"sales/{SALE}/schedule", b'{"open_time":null,"close_time":null}'),
    ("POST", f"sales/{SALE}/eligible-users", b'{"user_ids":["ann"]}'),
    ("GET", f"sales/{SALE}/statement", None),
    ("GET", f"sales/{SALE}/changes", None),
    ("GET", "dead-letters", None),
    ("POST", "dead-letters/replay", b'{"most":5}'),
    ("GET", "parked", None),
    ("POST", "parked/replay", b'{"purchase_ids":["%s"]}' % ID.encode()),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=lambda value: str(value)[-20:])
async def test_a_route_of_operators_is_403_for_everybody_else_and_makes_no_call(
    method: str, path: str, body: bytes | None
) -> None:
    async with harness() as h:
        headers = {"authorization": f"Bearer {issue(SECRET, 'olga')}"}
        reply = await h.request(method, f"/v1/operator/{path}", headers, body)
        assert (reply.status, reply.json["reason"]) == (403, "PERMISSION_DENIED")
        assert reply.headers["content-type"] == "application/problem+json"
        assert (await h.request(method, f"/v1/operator/{path}", {}, body)).status == 401
        assert (h.inventories.changes, h.inventories.lists, h.purchases.summaries) == ([], 0, [])
        assert h.inventories.eligible == set()
        assert (await h.operate(method, path, body)).status == 200


async def test_a_sale_is_changed_in_the_name_of_whoever_asks() -> None:
    async with harness() as h:
        for verb, state in (("open", "OPEN"), ("pause", "PAUSED"), ("close", "CLOSED")):
            shown = (await h.operate("POST", f"sales/{SALE}/{verb}")).json
            assert (shown["state"], shown["state_actor"]) == (state, "olga")
        assert (await h.operate("POST", f"sales/{SALE}/total", b'{"total":7}', actor="otto")).json["total"] == 7
        assert h.inventories.changes == [
            ("open", SALE, "olga"),
            ("pause", SALE, "olga"),
            ("close", SALE, "olga"),
            ("total 7", SALE, "otto"),
        ]


async def test_a_sale_is_scheduled_by_times_of_any_zone_and_neither_is_changed_by_leaving_it_out() -> None:
    async with harness() as h:
        path = f"sales/{SALE}/schedule"
        body = b'{"open_time":"2030-01-01T09:00:00.5+02:00","close_time":"2030-01-02T00:00:00Z"}'
        shown = (await h.operate("POST", path, body)).json
        assert (shown["open_time"], shown["close_time"]) == ("2030-01-01T07:00:00.500Z", "2030-01-02T00:00:00Z")
        assert shown["state_actor"] == "olga"
        shown = (await h.operate("POST", path, b'{"open_time":null,"close_time":"2030-01-02T00:00:00Z"}')).json
        assert (shown["open_time"], shown["close_time"]) == (None, "2030-01-02T00:00:00Z")
        assert h.inventories.changes == [("schedule", SALE, "olga")] * 2
        for wrong in (
            None,
            b"{}",
            b'{"open_time":null}',
            b'{"open_time":"2030-01-01T09:00:00","close_time":null}',
            b'{"open_time":"tomorrow","close_time":null}',
            b'{"open_time":1893484800,"close_time":null}',
            b'{"open_time":"0001-01-01T00:00:00+14:00","close_time":null}',
            b'{"open_time":"9999-12-31T23:59:59-14:00","close_time":null}',
            b'{"open_time":null,"close_time":null,"state":"OPEN"}',
        ):
            assert (await h.operate("POST", path, wrong)).status == 400, wrong
        assert len(h.inventories.changes) == 2


async def test_users_are_made_eligible_as_many_as_a_larger_body_holds() -> None:
    async with harness() as h:
        path = f"sales/{SALE}/eligible-users"
        many = [f"user number {number} of the list, who may buy" for number in range(1000)]
        body = json.dumps({"user_ids": many}).encode()
        assert 10 * 4096 < len(body) <= 64 * 1024
        assert (await h.operate("POST", path, body)).json == {"added": 1000, "eligible": 1000}
        assert (await h.operate("POST", path, b'{"user_ids":["zoe","zo\\u00eb","zoe"]}')).json["added"] == 2
        for wrong in (
            b"{}",
            b'{"user_ids":[]}',
            b'{"user_ids":"zoe"}',
            b'{"user_ids":[1]}',
            b'{"user_ids":["\\ud800"]}',
        ):
            assert (await h.operate("POST", path, wrong)).status == 400, wrong
        too_many = json.dumps({"user_ids": [str(number) for number in range(1001)]}).encode()
        assert (await h.operate("POST", path, too_many)).json["violations"][0]["field"] == "user_ids"
        # Only here, and only up to there: one that is announced as larger is not even read.
        token = issue(SECRET, "olga", operator=True)
        for route, length in ((path, 64 * 1024 + 1), (f"sales/{SALE}/total", 4097)):
            lines = [f"POST /v1/operator/{route} HTTP/1.1", "host: t", f"authorization: Bearer {token}"]
            head = "\r\n".join([*lines, f"content-length: {length}"])
            assert (await h.raw(head.encode() + b"\r\n\r\n")).startswith(b"413")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (length, b" " * length)
            head = "\r\n".join([*lines, "transfer-encoding: chunked"])
            assert (await h.raw(head.encode() + b"\r\n\r\n" + body)).startswith(b"413")
        assert len(h.inventories.eligible) == 1002


async def test_what_the_services_refuse_is_passed_on() -> None:
    async with harness() as h:
        for verb in ("open", "pause", "close"):
            assert (await h.operate("POST", f"sales/{OTHER_SALE}/{verb}")).status == 404
        reply = await h.operate("POST", f"sales/{SALE}/total", b'{"total":3}')
        assert (reply.status, reply.json["violations"][0]["field"]) == (400, "total")


async def test_statements_and_changes_of_a_sale_are_shown() -> None:
    async with harness() as h:
        statement = (await h.operate("GET", f"sales/{SALE}/statement?page_size=10")).json
        assert (statement["final"], statement["sold_units"]) == (True, 4)
        assert statement["captured"] == {"amount_minor": 10_000, "currency_code": "EUR"}
        [counted] = statement["non_win_counts"]
        assert (counted["reason"], counted["words"]) == ("INSUFFICIENT_FUNDS", "too little money")
        assert statement["non_wins"][0]["user_id"] == "poor"
        [change] = (await h.operate("GET", f"sales/{SALE}/changes")).json["changes"]
        assert (change["actor"], change["from_state"], change["to_state"]) == ("ann", None, "DRAFT")


async def test_what_got_stuck_is_shown_and_replayed() -> None:
    async with harness() as h:
        h.purchases.purchases[ID] = purchase.Purchase(
            purchase_id=ID, user_id="rich", state=purchase.PURCHASE_STATE_PARKED, request_id="key"
        )
        letters = (await h.operate("GET", "dead-letters?page_size=5")).json
        assert letters["count"] == 2
        assert letters["letters"][0] | {"first_seen_time": None} == {
            "first_seen_time": None,
            "partition": None,
            "body_bytes": 7,
            "reason": "is no message",
            "purchase_ids": ["p"],
        }
        replayed = (await h.operate("POST", "dead-letters/replay", b'{"most":7}')).json
        assert replayed == {"purchases": 7, "letters_left": 1, "why": ["unreadable"]}
        assert (await h.operate("POST", "dead-letters/replay")).json["purchases"] == 20
        [parked] = (await h.operate("GET", "parked")).json["purchases"]
        assert (parked["purchase_id"], parked["user_id"], parked["request_id"]) == (ID, "rich", "key")
        body = f'{{"purchase_ids":["{ID}","{OTHER_SALE}"]}}'.encode()
        assert (await h.operate("POST", "parked/replay", body)).json["outcomes"] == [
            {"purchase_id": ID, "reason": None},
            {"purchase_id": OTHER_SALE, "reason": "PURCHASE_NOT_FOUND"},
        ]


def _count(state: purchase.PurchaseState.ValueType, units: int) -> purchase.PurchaseCount:
    return purchase.PurchaseCount(state=state, purchases=units, units=units)


async def _overview(h: Harness) -> Any:
    reply = await h.operate("GET", "overview")
    assert reply.status == 200
    return reply.json


async def test_the_overview_shows_sales_answers_queue_and_verdict() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, waiting=4))
        await h.followed()
        await h.stock_is(0)
        h.inventories.now = inventory.Stock(sale_id=SALE, sold=5, total=5, epoch=1, open=True, waiting=4)
        h.purchases.counts = [_count(purchase.PURCHASE_STATE_CONFIRMED, 5)]
        for number in range(3):
            assert (await h.buy(f"key-{number}")).status == 409
        seen = await _overview(h)
        [sale] = seen["sales"]
        assert (sale["sale_id"], sale["state"], sale["stock"]["waiting"]) == (SALE, "OPEN", 4)
        assert sale["counts"] == [{"state": "CONFIRMED", "reason": None, "purchases": 5, "units": 5}]
        assert (sale["settlement"]["settled"], sale["settlement"]["eta_s"]) == (5, 0)
        assert seen["answers"]["sold_out"]["total"] == 3
        assert set(seen["answers"]) >= {"accepted", "waitlisted", "sold_out", "shed", "errors"}
        assert seen["queue"] == {"messages": 3, "dead_letters": 2, "oldest_age_s": None}
        assert (seen["audit"]["verdict"], seen["away"]) == ("kept", [])
        assert {line["promise"]: line["ok"] for line in seen["audit"]["lines"]} == dict.fromkeys(
            ("I1", "I2", "I3", "I6"), True
        )


async def test_many_operators_cost_one_reader_and_none_costs_nothing() -> None:
    async with harness() as h:
        overview = h.gateway.parts.overview
        assert (overview.readings, h.inventories.lists) == (0, 0)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        while loop.time() < began + 1.5:
            await asyncio.gather(*(_overview(h) for _ in range(20)))
        assert overview.readings <= loop.time() - began + 2
        assert h.inventories.lists == overview.readings


async def test_a_broken_promise_shows_once_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.overview._AUDIT_S", 0.0)
    monkeypatch.setattr("gateway.overview._PERIOD_S", 0.05)
    async with harness() as h:
        h.purchases.counts = [_count(purchase.PURCHASE_STATE_CONFIRMED, 5)]
        h.inventories.now = inventory.Stock(sale_id=SALE, sold=5, total=5, open=True)
        h.inventories.book = inventory.Stock(sale_id=SALE, sold=4, available=1, total=5, open=True)

        async def lines() -> dict[str, Any]:
            return {line["promise"]: line for line in (await _overview(h))["audit"]["lines"]}

        async with asyncio.timeout(5):
            while (await lines())["I6"]["ok"] is not False:
                await asyncio.sleep(0.01)
        assert "sold 5 in Redis, 4 in SQL" in (await lines())["I6"]["text"]
        assert "4 shares sold, 5 paid for" in (await lines())["I2"]["text"]
        h.balances.books = balance.CheckBooksResponse(wrong_transfers=["t"])
        h.inventories.book = None
        async with asyncio.timeout(5):
            while (await lines())["I3"]["ok"] is not False or (await lines())["I6"]["ok"] is not True:
                await asyncio.sleep(0.01)
        assert (await _overview(h))["audit"]["verdict"] == "broken"


async def test_a_service_that_is_away_leaves_its_part_of_the_overview_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.overview._PERIOD_S", 0.05)
    async with harness() as h:
        h.purchases.failure = DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        seen = await _overview(h)
        assert seen["away"] == ["purchase"]
        [sale] = seen["sales"]
        assert (sale["counts"], sale["settlement"], sale["stock"]["available"]) == (None, None, 5)
        assert seen["queue"] == {"messages": None, "dead_letters": None, "oldest_age_s": None}
        h.purchases.failure = None
        async with asyncio.timeout(5):
            while (await _overview(h))["away"]:
                await asyncio.sleep(0.01)
        assert (await _overview(h))["queue"]["messages"] == 3


async def test_a_sale_of_which_nothing_is_under_way_is_not_counted_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.overview._PERIOD_S", 0.05)
    monkeypatch.setattr("gateway.overview._AUDIT_S", 3600.0)
    async with harness() as h:
        h.inventories.last[OTHER_SALE] = reading(0)
        h.inventories.sales += [inventory.Sale(sale_id=OTHER_SALE, state=inventory.SALE_STATE_CLOSED)]
        h.purchases.counts = [_count(purchase.PURCHASE_STATE_CONFIRMED, 5)]
        overview = h.gateway.parts.overview
        await _overview(h)
        before = h.purchases.summaries.count(OTHER_SALE)
        await until(lambda: overview.readings > 5)
        assert h.purchases.summaries.count(OTHER_SALE) == before
        assert h.purchases.summaries.count(SALE) > 5


async def test_operators_calls_are_bounded_and_leave_the_buyers_reads_alone() -> None:
    async with harness(reads_max=1) as h:
        h.gateway.parts.reading.reads = 1
        assert (await h.operate("GET", "parked")).status == 200
        h.gateway.parts.reading.reads = 0
        h.gateway.parts.operating.calls = 16
        assert (await h.operate("GET", "parked")).status == 429
        assert (await h.get("/v1/balance", "rich")).status == 200
