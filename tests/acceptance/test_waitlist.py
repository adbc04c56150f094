"""The waitlist, cancels, refunds and receipts on the whole system, as buyers see them over HTTP."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.audit.auditing import audit
from bench.clients import Clients, open_clients
from tests.acceptance.people import PRICE, Sale, Web, open_sale
from tests.acceptance.recount import Recount
from tests.support.servers import MeshStack
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
async def clients(mesh_stack: MeshStack) -> AsyncIterator[Clients]:
    async with open_clients(mesh_stack.environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def web(mesh_stack: MeshStack) -> Web:
    return Web(mesh_stack)


@pytest.fixture(scope="module")
def recount(mesh_stack: MeshStack) -> Recount:
    return Recount(mesh_stack.environment)


async def wait_in_line(sale: Sale, names: str) -> None:
    """Some people, by their initials, join the line one after the other."""
    for place, name in enumerate(names, start=1):
        status, answer = await sale.buy(name, waitlist=True)
        assert (status, answer["state"], answer["waitlist_position"]) == (202, "WAITLISTED", place)
        assert answer["estimated_wait_s"] >= 1


async def places(sale: Sale, names: str) -> list[int | None]:
    return [(await sale.of(name)).get("waitlist_position") for name in names]


async def test_whoever_comes_first_is_served_first_and_newcomers_are_not(
    web: Web, clients: Clients, recount: Recount
) -> None:
    sale = await open_sale(web, clients, "abxyzn", 2)
    await sale.own("ab")
    await wait_in_line(sale, "xyz")
    assert (await sale.act("x", "DELETE"))[1]["state"] == "CANCELLED"
    assert await places(sale, "yz") == [1, 2]
    assert (await sale.act("a", "POST", "refund"))[0] in (200, 202)
    assert (await sale.end_of("y"))["state"] == "CONFIRMED"
    assert await places(sale, "z") == [1]
    status, refused = await sale.buy("n")
    assert (status, refused["reason"]) == (409, "SOLD_OUT")
    assert (await sale.of("x"))["state"] == "CANCELLED"
    recount.line(sale.sale_id)
    recount.outcomes(sale.sale_id)


async def test_a_failed_payment_makes_room_for_the_first_in_line(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "Pxy", 1)
    assert (await sale.buy("P"))[1]["state"] == "RESERVED"
    # Whether the poor one's unit is back by now or not: one of the two is served, and in their order.
    for name in "xy":
        assert (await sale.buy(name, waitlist=True))[0] == 202
    assert (await sale.end_of("x"))["state"] == "CONFIRMED"
    assert (await sale.of("y"))["state"] == "WAITLISTED"


async def test_a_repeated_request_keeps_its_place(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "axy", 1)
    await sale.own("a")
    await wait_in_line(sale, "xy")
    for waitlist in (True, False):
        status, again = await sale.buy("x", waitlist=waitlist)
        assert (status, again["state"], again["waitlist_position"]) == (202, "WAITLISTED", 1)
    assert await places(sale, "xy") == [1, 2]


async def test_a_smaller_request_overtakes_only_where_the_sale_allows_it(web: Web, clients: Clients) -> None:
    for allowed in (False, True):
        sale = await open_sale(web, clients, "abxy", 2, overtaking_allowed=allowed)
        await sale.own("ab")
        assert (await sale.buy("x", 2, waitlist=True))[1]["waitlist_position"] == 1
        assert (await sale.buy("y", 1, waitlist=True))[1]["waitlist_position"] == 2
        assert (await sale.act("a", "POST", "refund"))[0] in (200, 202)
        assert (await sale.end_of("a"))["state"] == "REFUNDED"
        if allowed:
            assert (await sale.end_of("y"))["state"] == "CONFIRMED"
        else:
            assert await places(sale, "xy") == [1, 2]
            assert (await sale.act("b", "POST", "refund"))[0] in (200, 202)
            assert (await sale.end_of("x"))["state"] == "CONFIRMED"
            assert await places(sale, "y") == [1]


async def test_the_line_keeps_its_order_when_redis_loses_everything(
    mesh_stack: MeshStack, web: Web, clients: Clients, recount: Recount
) -> None:
    sale = await open_sale(web, clients, "abxyz", 2)
    await sale.own("ab")
    await wait_in_line(sale, "xyz")
    await asyncio.to_thread(mesh_stack.stack.stop, "redis")
    for path in (mesh_stack.stack.folder.redis / "data" / "appendonlydir").iterdir():
        path.unlink()
    await asyncio.to_thread(mesh_stack.stack.start, "redis")

    async def line_is_back() -> bool:
        gate = await asyncio.to_thread(recount.gate, sale.sale_id)
        return gate.get("serving") == "1" and gate.get("waiting") == "3"

    await eventually(line_is_back)
    assert await places(sale, "xyz") == [1, 2, 3]
    for owner, next_one in zip("ab", "xy", strict=True):
        assert (await sale.act(owner, "POST", "refund"))[0] in (200, 202)
        assert (await sale.end_of(next_one))["state"] == "CONFIRMED"
    assert await places(sale, "z") == [1]
    recount.line(sale.sale_id)


async def test_a_refund_gives_the_money_back_once_and_the_share_to_the_next(
    web: Web, clients: Clients, recount: Recount
) -> None:
    sale = await open_sale(web, clients, "ax", 1)
    await sale.own("a")
    numbers = (await sale.of("a"))["share_numbers"]
    assert await sale.balance("a") == 3 * PRICE
    await wait_in_line(sale, "x")
    answers = await asyncio.gather(*(sale.act("a", "POST", "refund") for _ in range(4)))
    assert {status for status, _ in answers} <= {200, 202}
    assert {answer["state"] for _, answer in answers} <= {"REFUNDING", "REFUNDED"}

    async def refunded() -> bool:
        return str((await sale.of("a"))["state"]) == "REFUNDED"

    await eventually(refunded)
    status, again = await sale.act("a", "POST", "refund")
    assert (status, again["state"], again["share_numbers"]) == (200, "REFUNDED", [])
    assert await sale.balance("a") == 4 * PRICE
    assert (await sale.end_of("x"))["share_numbers"] == numbers
    recount.outcomes(sale.sale_id)
    recount.books()
    assert (await audit(clients)).violations == ()


async def test_what_is_not_confirmed_is_not_refunded(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "ax", 1)
    await sale.own("a")
    await wait_in_line(sale, "x")
    status, refused = await sale.act("x", "POST", "refund")
    assert (status, refused["reason"]) == (409, "PURCHASE_NOT_REFUNDABLE")
    # Another's purchase looks like none.
    sale.purchase_ids["x"] = sale.purchase_ids["a"]
    status, refused = await sale.act("x", "POST", "refund")
    assert (status, refused["reason"]) == (404, "PURCHASE_NOT_FOUND")
    assert (await sale.of("a"))["state"] == "CONFIRMED"


async def test_a_receipt_tells_every_step_and_why_somebody_won_nothing(web: Web, clients: Clients) -> None:
    sale = await open_sale(web, clients, "aPx", 1)
    await sale.own("a")
    await wait_in_line(sale, "Px")
    assert (await sale.act("a", "POST", "refund"))[0] in (200, 202)
    assert (await sale.end_of("P"))["state"] == "FAILED"
    assert (await sale.end_of("x"))["state"] == "CONFIRMED"
    told = {name: (await sale.act(name, "GET", "receipt"))[1] for name in "aPx"}
    states = {name: [step["state"] for step in receipt["steps"]] for name, receipt in told.items()}
    assert states["a"] == ["RESERVED", "SETTLING", "CONFIRMED", "REFUNDING", "REFUNDED"]
    assert states["x"] == ["WAITLISTED", "RESERVED", "SETTLING", "CONFIRMED"]
    assert states["P"] == ["WAITLISTED", "RESERVED", "SETTLING", "FAILED"]
    for receipt in told.values():
        times = [step["time"] for step in receipt["steps"]]
        assert times == sorted(times)
        assert all(step["words"] for step in receipt["steps"])
        assert receipt["words"]
    holds = {name: receipt["hold"]["state"] for name, receipt in told.items()}
    assert holds == {"a": "REVERSED", "P": "REFUSED", "x": "CAPTURED"}
    units = {name: receipt["reservation"]["state"] for name, receipt in told.items()}
    assert units == {"a": "RELEASED", "P": "RELEASED", "x": "SOLD"}
