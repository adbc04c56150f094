"""A sale's life on the whole system: it opens and closes by itself, is paused and raised, and ends with a statement."""

import time
from collections.abc import AsyncIterator

import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from google.protobuf.timestamp_pb2 import Timestamp

from bench.audit.auditing import audit
from bench.clients import Clients, call, open_clients
from tests.acceptance.people import OPERATOR, PRICE, Web, new_sale, open_sale
from tests.support.servers import MeshStack


@pytest.fixture(scope="module")
async def clients(mesh_stack: MeshStack) -> AsyncIterator[Clients]:
    async with open_clients(mesh_stack.environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def web(mesh_stack: MeshStack) -> Web:
    return Web(mesh_stack)


def in_seconds(seconds: float) -> Timestamp:
    """A time so far from now, by the clock that database and test share."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return stamp


async def test_a_sale_opens_and_closes_by_itself_and_tells_who_did_what(web: Web, clients: Clients) -> None:
    opens, closes = in_seconds(2), in_seconds(8)
    sale = await new_sale(web, clients, "ab", 1, open_time=opens, close_time=closes, actor="olga")
    assert await sale.state() == "SCHEDULED"
    status, refused = await sale.buy("a")
    assert (status, refused["reason"]) == (409, "SALE_NOT_OPEN")
    await sale.until("OPEN")
    assert time.time_ns() >= opens.ToNanoseconds()
    await sale.own("a")
    await sale.until("SOLD_OUT")
    status, waiting = await sale.buy("b", waitlist=True)
    assert (status, waiting["state"], waiting["waitlist_position"]) == (202, "WAITLISTED", 1)
    await sale.until("CLOSED")
    assert time.time_ns() >= closes.ToNanoseconds()
    ended = await sale.end_of("b")
    assert (ended["state"], ended["reason"]) == ("FAILED", "SALE_CLOSED")
    assert await sale.changes() == [
        ("olga", "", "SCHEDULED", 1),
        ("schedule", "SCHEDULED", "OPEN", 1),
        ("stock", "OPEN", "SOLD_OUT", 1),
        ("schedule", "SOLD_OUT", "CLOSED", 1),
    ]


async def test_a_paused_sale_takes_nobody_and_goes_on_where_it_was(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "abc", 2)
    await sale.own("a")
    status, answer = await web.operate("POST", f"sales/{sale.sale_id}/pause")
    assert (status, answer["state"]) == (200, "PAUSED")
    status, refused = await sale.buy("b")
    assert (status, refused["reason"]) == (409, "SALE_NOT_OPEN")
    status, answer = await web.operate("POST", f"sales/{sale.sale_id}/open")
    assert (status, answer["state"]) == (200, "OPEN")
    await sale.own("b")
    await sale.until("SOLD_OUT")
    status, answer = await web.operate("POST", f"sales/{sale.sale_id}/close")
    assert (status, answer["state"]) == (200, "CLOSED")
    status, refused = await web.operate("POST", f"sales/{sale.sale_id}/open")
    assert (status, refused["reason"]) == (409, "SALE_STATE_CONFLICT")
    told = [(actor, after) for actor, _, after, _ in await sale.changes()]
    assert told == [
        ("", "DRAFT"),
        (OPERATOR, "OPEN"),
        (OPERATOR, "PAUSED"),
        (OPERATOR, "OPEN"),
        ("stock", "SOLD_OUT"),
        (OPERATOR, "CLOSED"),
    ]


async def test_only_an_operator_may_change_a_sale(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "a", 1)
    status, refused = await web.send("POST", f"/v1/operator/sales/{sale.sale_id}/close", sale.user("a"))
    assert (status, refused["reason"]) == (403, "PERMISSION_DENIED")
    assert await sale.state() == "OPEN"


async def test_a_raised_total_goes_to_the_line_first(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "abcd", 1)
    await sale.own("a")
    for place, name in enumerate("bc", start=1):
        assert (await sale.buy(name, waitlist=True))[1]["waitlist_position"] == place
    status, answer = await web.operate("POST", f"sales/{sale.sale_id}/total", {"total": 3})
    assert (status, answer["total"]) == (200, 3)
    for name in "bc":
        assert (await sale.end_of(name))["state"] == "CONFIRMED"
    status, refused = await sale.buy("d")
    assert (status, refused["reason"]) == (409, "SOLD_OUT")
    # Who is settled first has the lower number, and that is nobody's promise: the two are of different partitions.
    assert (await sale.of("a"))["share_numbers"] == [1]
    assert sorted([(await sale.of(name))["share_numbers"] for name in "bc"]) == [[2], [3]]


async def test_only_those_on_the_list_may_buy_or_wait(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "ab", 1, eligible_users_only=True)
    added = await call(
        clients.inventory.BatchAddEligibleUsers,
        inventory.BatchAddEligibleUsersRequest(sale_id=sale.sale_id, user_ids=[sale.user("a")]),
    )
    assert (added.added, added.eligible) == (1, 1)
    for waitlist in (False, True):
        status, refused = await sale.buy("b", waitlist=waitlist)
        assert (status, refused["reason"]) == (403, "NOT_ELIGIBLE")
    await sale.own("a")


async def test_the_statement_tells_everything_that_a_sale_came_to(web: Web, clients: Clients) -> None:
    """Two of three shares stay sold: one owner had his money back, and nobody was left who could pay for it."""
    sale = await open_sale(web, clients, "abcPw", 3)
    await sale.own("abc")
    assert (await sale.buy("P", waitlist=True))[1]["waitlist_position"] == 1
    assert (await sale.buy("w", waitlist=True))[1]["waitlist_position"] == 2
    assert (await sale.act("w", "DELETE"))[1]["state"] == "CANCELLED"
    assert (await sale.act("c", "POST", "refund"))[0] in (200, 202)
    assert (await sale.end_of("P"))["reason"] == "INSUFFICIENT_FUNDS"
    await web.operate("POST", f"sales/{sale.sale_id}/close")
    told = await sale.statement()
    assert (told["total"], told["sold_units"], told["sold_purchases"], told["unfinished_purchases"]) == (3, 2, 2, 0)
    assert told["captured"]["amount_minor"] == 3 * PRICE
    assert told["refunded"]["amount_minor"] == PRICE
    counts = {(item["state"], item["reason"]): item for item in told["non_win_counts"]}
    assert {key: item["purchases"] for key, item in counts.items()} == {
        ("CANCELLED", None): 1,
        ("FAILED", "INSUFFICIENT_FUNDS"): 1,
        ("REFUNDED", None): 1,
    }
    assert all(item["words"] for item in counts.values())
    by_user = {item["user_id"]: item["state"] for item in told["non_wins"]}
    assert by_user == {sale.user("P"): "FAILED", sale.user("w"): "CANCELLED", sale.user("c"): "REFUNDED"}
    assert (await audit(clients)).violations == ()
