"""InventoryService, the line: joining, places, strict order, promotion, leaving, outcomes."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh.errors import from_rpc_error
from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.servers import Servers
from tests.support.waiting import eventually
from tests.support.waitlist_rig import (
    ask,
    at_rest,
    entries,
    ids_of,
    joining,
    leave,
    places,
    promoted_in_order,
    sold_out_sale,
    states,
    waiting,
)

R = ErrorReason
RELEASED = R.ERROR_REASON_RESERVATION_RELEASED
STATE = pb.WaitlistState


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


async def allow_overtaking(rig: InventoryRig, sale_id: str) -> None:
    await rig.sql("UPDATE sales SET overtaking_allowed = true WHERE sale_id = %s", sale_id)


async def test_who_finds_no_unit_joins_the_line_in_order_and_is_told_the_place(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig, 3)
    assert await ask(rig, [joining(sale_id, "a"), item(sale_id, "b"), joining(sale_id, "c", quantity=3)]) == [
        "waits 1",
        SOLD_OUT,
        "waits 2",
    ]
    assert await ask(rig, [joining(sale_id, "d")]) == ["waits 3"]
    ids = ids_of([joining(sale_id, user) for user in ("a", "c", "d", "b")])
    assert await places(rig, ids) == [(1, 0), (2, 1), (3, 4), (0, 0)]
    assert await states(rig, ids) == ["WAITING", "WAITING", "WAITING", ""]
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 3)
    assert [entry.ticket for entry in await entries(rig, sale_id)] == [1, 2, 3]


async def test_who_finds_units_gets_them_and_the_line_is_not_touched(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(2)
    assert await ask(rig, [joining(sale_id, "a"), joining(sale_id, "b")]) == [OK, OK]
    assert await at_rest(rig, sale_id) == ((0, 2, 0), 0)
    assert await entries(rig, sale_id) == []


async def test_a_repetition_in_line_keeps_its_place_whatever_it_says_about_joining(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig)
    first, second = joining(sale_id, "a"), joining(sale_id, "b")
    assert await ask(rig, [first, second, first]) == ["waits 1", "waits 2", "waits 1"]
    assert await ask(rig, [item(sale_id, "b"), first]) == ["waits 2", "waits 1"]
    other = joining(sale_id, "b", quantity=2)
    assert await ask(rig, [other]) == [R.ERROR_REASON_REQUEST_ID_REUSED]
    assert await ask(rig, [item(sale_id, "c"), joining(sale_id, "c")]) == ["waits 3", "waits 3"]
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 3)


async def test_terms_come_with_a_sale_for_which_somebody_waits(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig)
    response = await rig.inventory.BatchReserveShares(pb.BatchReserveSharesRequest(items=[joining(sale_id, "a")]))
    assert [terms.sale_id for terms in response.sale_terms] == [sale_id]


async def test_a_released_unit_goes_to_the_first_in_line_in_the_same_transaction(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 3)
    line = [joining(sale_id, user) for user in "abcde"]
    await ask(rig, line)
    assert await rig.release([holders[0]]) == [OK]
    # No time has passed for anybody else to do it.
    assert await states(rig, ids_of(line)) == ["RESERVED", *["WAITING"] * 4]
    assert await rig.release(holders[1:]) == [OK, OK]
    assert await states(rig, ids_of(line)) == ["RESERVED"] * 3 + ["WAITING"] * 2
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 2)
    assert await promoted_in_order(rig, sale_id) == ids_of(line[:3])
    assert await ask(rig, [line[0], line[4]]) == [OK, "waits 2"]
    assert await places(rig, ids_of(line)) == [(0, 0)] * 3 + [(1, 0), (2, 1)]


async def test_a_revoked_share_goes_to_the_first_in_line_who_is_sold_its_number(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    await rig.confirm(holders)
    first = joining(sale_id, "a")
    await ask(rig, [first])
    assert await rig.release([holders[0]], revoke_sold=True) == [OK]
    assert await states(rig, [first.reservation_id]) == ["RESERVED"]
    assert await rig.confirm([first.reservation_id]) == [(OK, [1])]
    assert await at_rest(rig, sale_id) == ((0, 0, 2), 0)


async def test_a_newcomer_gets_nothing_while_somebody_waits(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 3)
    large = joining(sale_id, "large", quantity=3)
    assert await ask(rig, [large]) == ["waits 1"]
    await rig.release(holders[:2])
    assert await at_rest(rig, sale_id) == ((2, 1, 0), 1)
    assert await ask(rig, [item(sale_id, "new"), joining(sale_id, "newer")]) == [SOLD_OUT, "waits 2"]
    assert await at_rest(rig, sale_id) == ((2, 1, 0), 2)
    await rig.release(holders[2:])
    # Too little for it in any one release: the promoter gathers the units.
    await eventually_states(rig, [large.reservation_id], ["RESERVED"])
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 1)


async def eventually_states(rig: InventoryRig, ids: list[str], expected: list[str]) -> None:
    async def so() -> bool:
        return await states(rig, ids) == expected

    await eventually(so)


async def test_a_smaller_request_overtakes_only_where_the_sale_allows_it(rig: InventoryRig) -> None:
    for allowed in (False, True):
        sale_id, holders = await sold_out_sale(rig, 4)
        if allowed:
            await allow_overtaking(rig, sale_id)
        line = [joining(sale_id, "a", quantity=3), joining(sale_id, "b", quantity=2), joining(sale_id, "c")]
        await ask(rig, line)
        await rig.release(holders[:2])
        await at_rest(rig, sale_id)
        expected = ["WAITING", "RESERVED", "WAITING"] if allowed else ["WAITING"] * 3
        assert await states(rig, ids_of(line)) == expected
        await rig.release(holders[2:3])
        expected = ["WAITING", "RESERVED", "RESERVED"] if allowed else ["RESERVED", "WAITING", "WAITING"]
        await eventually_states(rig, ids_of(line), expected)
        assert await at_rest(rig, sale_id) == ((0, 4, 0), 1 if allowed else 2)


async def test_units_that_are_there_go_to_who_joins_when_nobody_larger_is_before(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    large = joining(sale_id, "large", quantity=2)
    await ask(rig, [large])
    await rig.release(holders[:1])
    small = joining(sale_id, "small")
    assert await ask(rig, [small]) == ["waits 2"]
    assert await leave(rig, [large.reservation_id]) == [OK]
    await eventually_states(rig, ids_of([large, small]), ["RELEASED", "RESERVED"])
    assert await at_rest(rig, sale_id) == ((0, 2, 0), 0)


async def test_who_leaves_never_comes_back(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    gone, cancelled, next_one = (joining(sale_id, user) for user in "abc")
    await ask(rig, [gone, cancelled, next_one])
    assert await leave(rig, [gone.reservation_id]) == [OK]
    assert await rig.release([cancelled.reservation_id]) == [OK]
    assert await leave(rig, ids_of([gone, cancelled])) == [OK, OK]
    assert await rig.release(ids_of([gone, cancelled])) == [OK, OK]
    assert await places(rig, ids_of([gone, cancelled, next_one])) == [(0, 0), (0, 0), (1, 0)]
    assert await ask(rig, [gone, cancelled]) == [RELEASED, RELEASED]
    await rig.recalibrate(sale_id)
    assert await ask(rig, [gone, cancelled]) == [RELEASED, RELEASED]
    await rig.release(holders)
    assert await states(rig, ids_of([gone, cancelled, next_one])) == ["RELEASED", "RELEASED", "RESERVED"]
    assert await at_rest(rig, sale_id) == ((1, 1, 0), 0)
    assert await rig.confirm(ids_of([gone])) == [(RELEASED, [])]


async def test_leaving_tells_apart_who_waits_was_promoted_and_never_was_there(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    promoted, waits = joining(sale_id, "a"), joining(sale_id, "b")
    await ask(rig, [promoted, waits])
    await rig.release(holders)
    missing = str(uuid.uuid4())
    assert await leave(rig, [promoted.reservation_id, waits.reservation_id, missing, "x", holders[0]]) == [
        R.ERROR_REASON_RESERVATION_PROMOTED,
        OK,
        R.ERROR_REASON_RESERVATION_NOT_FOUND,
        R.ERROR_REASON_INVALID_ARGUMENT,
        R.ERROR_REASON_RESERVATION_NOT_FOUND,
    ]
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 0)


async def test_the_limit_of_a_user_counts_what_it_waits_for(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig, 1, per_user=2)
    first, second = joining(sale_id, "a", "r1"), joining(sale_id, "a", "r2")
    third = joining(sale_id, "a", "r3")
    assert await ask(rig, [first, second, third]) == ["waits 1", "waits 2", R.ERROR_REASON_USER_LIMIT_REACHED]
    await rig.recalibrate(sale_id)
    assert await ask(rig, [third]) == [R.ERROR_REASON_USER_LIMIT_REACHED]
    await leave(rig, [second.reservation_id])
    assert await ask(rig, [third]) == ["waits 2"]
    await at_rest(rig, sale_id)


async def test_limits_of_a_purchase_and_the_total_hold_for_the_line_too(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig, 2, per_user=9, per_purchase=3)
    assert await ask(rig, [joining(sale_id, "a", quantity=4), joining(sale_id, "b", quantity=3)]) == [
        R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED,
        SOLD_OUT,
    ]


async def test_a_full_line_takes_nobody_else(servers: Servers) -> None:
    async with inventory_rig(servers, waitlist_max=2) as small:
        sale_id, holders = await sold_out_sale(small, 1)
        wishes = [joining(sale_id, user) for user in "abc"]
        assert await ask(small, wishes) == ["waits 1", "waits 2", R.ERROR_REASON_WAITLIST_FULL]
        await small.recalibrate(sale_id)
        assert await ask(small, [wishes[2], wishes[0]]) == [R.ERROR_REASON_WAITLIST_FULL, "waits 1"]
        await small.release(holders)
        assert await ask(small, [wishes[2]]) == ["waits 2"]


async def test_nobody_joins_or_is_promoted_while_the_sale_is_paused(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    line = [joining(sale_id, user) for user in "ab"]
    await ask(rig, line)
    await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id))
    assert await ask(rig, [joining(sale_id, "c"), line[0]]) == [R.ERROR_REASON_SALE_NOT_OPEN, "waits 1"]
    await rig.release(holders[:1])
    assert await at_rest(rig, sale_id) == ((1, 1, 0), 2)
    await asyncio.sleep(1.2)  # Longer than the promoter's period: it has looked at the line and left it alone.
    assert await states(rig, ids_of(line)) == ["WAITING", "WAITING"]
    await rig.inventory.OpenSale(pb.OpenSaleRequest(sale_id=sale_id))
    await eventually_states(rig, ids_of(line), ["RESERVED", "WAITING"])
    assert await at_rest(rig, sale_id) == ((0, 2, 0), 1)


async def test_closing_a_sale_ends_its_line(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    line = [joining(sale_id, user) for user in "abc"]
    await ask(rig, line)
    await rig.inventory.CloseSale(pb.CloseSaleRequest(sale_id=sale_id))
    await rig.release(holders[:1])
    await eventually_states(rig, ids_of(line), ["RELEASED"] * 3)
    assert await at_rest(rig, sale_id) == ((1, 1, 0), 0)
    ended = await entries(rig, sale_id)
    assert [entry.state for entry in ended] == [STATE.WAITLIST_STATE_CLOSED] * 3
    assert [entry.decision_number for entry in ended] == [1, 2, 3]
    assert await ask(rig, line[:1]) == [RELEASED]
    assert await leave(rig, ids_of(line)) == [OK] * 3


async def untold(rig: InventoryRig, sale_id: str) -> list[tuple[str, int]]:
    """Outcomes of a sale that are still listed."""
    listed = await rig.inventory.ListWaitlistOutcomes(pb.ListWaitlistOutcomesRequest())
    return [(entry.reservation_id, entry.state) for entry in listed.entries if entry.sale_id == sale_id]


async def test_outcomes_are_listed_in_the_order_decided_until_they_are_acknowledged(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    a, b, c, d = (joining(sale_id, user) for user in "abcd")
    await ask(rig, [a, b, c, d])
    assert await untold(rig, sale_id) == []
    await leave(rig, [b.reservation_id])
    await rig.release(holders)
    expected = [
        (b.reservation_id, STATE.WAITLIST_STATE_LEFT),
        (a.reservation_id, STATE.WAITLIST_STATE_PROMOTED),
        (c.reservation_id, STATE.WAITLIST_STATE_PROMOTED),
    ]
    assert await untold(rig, sale_id) == expected
    assert await untold(rig, sale_id) == expected
    request = pb.BatchAcknowledgeWaitlistOutcomesRequest(
        # Also one that waits, one that is not there and one that is none: they are left as they are.
        reservation_ids=[*ids_of([b, a, d]), str(uuid.uuid4()), "x"]
    )
    await rig.inventory.BatchAcknowledgeWaitlistOutcomes(request)
    await rig.inventory.BatchAcknowledgeWaitlistOutcomes(request)
    assert await untold(rig, sale_id) == expected[2:]
    await leave(rig, [d.reservation_id])
    assert await untold(rig, sale_id) == [*expected[2:], (d.reservation_id, STATE.WAITLIST_STATE_LEFT)]
    in_order = sorted(await entries(rig, sale_id), key=lambda entry: entry.decision_number)
    assert [(entry.reservation_id, entry.state) for entry in in_order] == [*expected, (d.reservation_id, 3)]
    assert all(entry.end_time.ToNanoseconds() >= entry.join_time.ToNanoseconds() for entry in in_order)


async def test_outcomes_of_one_release_are_listed_in_the_order_of_the_line(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 40)
    line = [joining(sale_id, f"u{number}") for number in range(40)]
    await ask(rig, line)
    await rig.release(holders)
    assert [key for key, _ in await untold(rig, sale_id)] == ids_of(line)


async def test_the_line_is_listed_page_by_page_and_by_state(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    line = [joining(sale_id, f"u{number}") for number in range(7)]
    await ask(rig, line)
    await rig.release(holders)
    assert ids_of(await entries(rig, sale_id, page_size=3)) == ids_of(line)
    waiters = await entries(rig, sale_id, page_size=2, state=STATE.WAITLIST_STATE_WAITING)
    assert ids_of(waiters) == ids_of(line[2:])
    assert (waiters[0].user_id, waiters[0].request_id, waiters[0].quantity, waiters[0].decision_number) == (
        "u2",
        "r1",
        1,
        0,
    )
    assert not waiters[0].HasField("end_time")
    for wrong in ({"state": 9}, {"page_size": -1}, {"page_token": "x"}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.inventory.ListWaitlist(pb.ListWaitlistRequest(sale_id=sale_id, **wrong))
        assert [field for field, _ in from_rpc_error(caught.value).violations] == list(wrong)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.inventory.ListWaitlist(pb.ListWaitlistRequest(sale_id=str(uuid.uuid4())))
    assert from_rpc_error(caught.value).reason_name == "SALE_NOT_FOUND"


async def test_reservations_are_read_by_id_in_the_order_asked_for(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 3)
    waits = joining(sale_id, "a", quantity=2)
    await ask(rig, [waits])
    await rig.confirm(holders[:1])
    asked = [waits.reservation_id, holders[0], str(uuid.uuid4()), "x", holders[1]]
    response = await rig.inventory.BatchGetReservations(pb.BatchGetReservationsRequest(reservation_ids=asked))
    found = response.reservations
    assert [one.reservation_id for one in found] == [waits.reservation_id, holders[0], holders[1]]
    assert [list(one.share_numbers) for one in found] == [[], [1], []]
    assert (found[0].quantity, found[0].user_id, found[0].request_id, found[0].sale_id) == (2, "a", "r1", sale_id)
    assert found[1].update_time.ToNanoseconds() > found[1].create_time.ToNanoseconds()
    assert found[0].update_time == found[0].create_time


async def test_a_stream_tells_how_many_wait_and_their_fingerprints(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    call = rig.inventory.WatchStock(pb.WatchStockRequest(sale_id=sale_id, include_fingerprints=True))
    known: set[int] = set()

    async def reads(expected_waiting: int, expected_known: int) -> None:
        async with asyncio.timeout(5):
            while True:
                message = await call.read()
                if message.fingerprints_reset:
                    known.clear()
                known.update(message.fingerprints_added)
                known.difference_update(message.fingerprints_removed)
                if message.stock.waiting == expected_waiting and len(known) == expected_known:
                    return

    await reads(0, 1)
    await ask(rig, [joining(sale_id, "a", "r2"), joining(sale_id, "b", "r3")])
    await reads(2, 3)
    await rig.release(holders)
    await reads(1, 2)
    call.cancel()
    assert await waiting(rig, sale_id) == 1
