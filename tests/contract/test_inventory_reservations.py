"""InventoryService, reservations: reserving, confirming, releasing and listing, item by item."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh.errors import from_rpc_error
from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.servers import Servers

R = ErrorReason


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


async def reserved(rig: InventoryRig, sale_id: str, *users: str, quantity: int = 1) -> list[str]:
    """Ids of fresh reservations."""
    items = [item(sale_id, user, quantity=quantity) for user in users]
    assert await rig.reserve(items) == [OK] * len(users)
    return [one.reservation_id for one in items]


async def test_units_are_given_until_they_are_gone_and_each_item_is_answered(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(3)
    reasons = await rig.reserve([item(sale_id, f"u{number}") for number in range(5)])
    assert reasons == [OK, OK, OK, SOLD_OUT, SOLD_OUT]
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 3, 0)


async def test_a_smaller_wish_still_fits_after_a_larger_one_did_not(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(3)
    wishes = [item(sale_id, "a", quantity=2), item(sale_id, "b", quantity=2), item(sale_id, "c")]
    assert await rig.reserve(wishes) == [OK, SOLD_OUT, OK]


async def test_terms_come_with_the_sales_that_were_reserved(rig: InventoryRig) -> None:
    sale_id, other = await rig.open_sale(1), await rig.open_sale(1)
    await reserved(rig, other, "first")
    request = pb.BatchReserveSharesRequest(items=[item(sale_id, "a"), item(other, "b"), item(other, "first")])
    response = await rig.inventory.BatchReserveShares(request)
    assert [outcome.reason for outcome in response.outcomes] == [OK, SOLD_OUT, OK]
    assert {terms.sale_id for terms in response.sale_terms} == {sale_id, other}
    assert all(terms.unit_price.amount_minor == 1_000 for terms in response.sale_terms)
    lost = await rig.inventory.BatchReserveShares(pb.BatchReserveSharesRequest(items=[item(other, "b")]))
    assert not lost.sale_terms


async def test_a_winner_who_repeats_is_told_so_also_after_sold_out_sale_and_pause(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    wish = item(sale_id, "winner")
    assert await rig.reserve([wish]) == [OK]
    assert await rig.reserve([item(sale_id, "loser"), wish]) == [SOLD_OUT, OK]
    await rig.confirm([wish.reservation_id])
    assert await rig.reserve([wish]) == [OK]
    await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id))
    assert await rig.reserve([wish]) == [OK]
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 0, 1)


async def test_an_item_that_occurs_twice_is_answered_twice_alike(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    wish = item(sale_id, "a", quantity=2)
    assert await rig.reserve([wish, wish]) == [OK, OK]
    assert await rig.stock(sale_id) == (8, 2, 0)


async def test_sold_out_is_not_remembered(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    (taken,) = await reserved(rig, sale_id, "first")
    assert await rig.reserve([item(sale_id, "second")]) == [SOLD_OUT]
    assert await rig.release([taken]) == [OK]
    assert await rig.reserve([item(sale_id, "second")]) == [OK]


async def test_the_same_id_with_other_contents_is_refused(rig: InventoryRig) -> None:
    sale_id, other = await rig.open_sale(10), await rig.open_sale(10)
    wish = item(sale_id, "a")
    assert await rig.reserve([wish]) == [OK]
    changes: list[dict[str, Any]] = [{"quantity": 2}, {"user_id": "b"}, {"request_id": "r2"}, {"sale_id": other}]
    for change in changes:
        changed = pb.ReserveItem()
        changed.CopyFrom(wish)
        for name, value in change.items():
            setattr(changed, name, value)
        assert await rig.reserve([changed]) == [R.ERROR_REASON_REQUEST_ID_REUSED], change
    assert await rig.stock(sale_id) == (9, 1, 0)
    assert await rig.stock(other) == (10, 0, 0)


async def test_limits_of_a_user_and_of_a_purchase(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(100, per_user=3, per_purchase=2)
    assert await rig.reserve(
        [
            item(sale_id, "a", "r1", 2),
            item(sale_id, "a", "r2", 2),
            item(sale_id, "a", "r3", 1),
            item(sale_id, "a", "r4", 1),
            item(sale_id, "b", "r1", 3),
        ]
    ) == [
        OK,
        R.ERROR_REASON_USER_LIMIT_REACHED,
        OK,
        R.ERROR_REASON_USER_LIMIT_REACHED,
        R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED,
    ]


async def test_released_and_sold_units_count_for_the_users_limit_as_they_should(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(100, per_user=1)
    (first,) = await reserved(rig, sale_id, "a")
    await rig.confirm([first])
    assert await rig.reserve([item(sale_id, "a", "r2")]) == [R.ERROR_REASON_USER_LIMIT_REACHED]
    await rig.release([first], revoke_sold=True)
    assert await rig.reserve([item(sale_id, "a", "r2")]) == [OK]


@pytest.mark.parametrize("state", ["draft", "paused", "closed"])
async def test_a_sale_that_is_not_open_gives_nothing(rig: InventoryRig, state: str) -> None:
    sale_id = (await rig.create_sale(5)).sale_id
    if state != "draft":
        await rig.inventory.OpenSale(pb.OpenSaleRequest(sale_id=sale_id))
    if state == "paused":
        await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id))
    if state == "closed":
        await rig.inventory.CloseSale(pb.CloseSaleRequest(sale_id=sale_id))
    assert await rig.reserve([item(sale_id, "a")]) == [R.ERROR_REASON_SALE_NOT_OPEN]


async def test_one_bad_item_never_fails_its_neighbours(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    good, bad_id = item(sale_id, "good"), item(sale_id, "a")
    bad_id.reservation_id = "no uuid"
    unknown = item(str(uuid.uuid4()), "a")
    spaced = item(sale_id, " a")
    endless = item(sale_id, "x" * 129)
    no_request = item(sale_id, "a", "")
    nothing, less = item(sale_id, "a", "r2", 0), item(sale_id, "a", "r3", -1)
    assert await rig.reserve([bad_id, unknown, spaced, good, endless, no_request, nothing, less]) == [
        R.ERROR_REASON_INVALID_ARGUMENT,
        R.ERROR_REASON_SALE_NOT_FOUND,
        R.ERROR_REASON_INVALID_ARGUMENT,
        OK,
        *[R.ERROR_REASON_INVALID_ARGUMENT] * 4,
    ]


async def test_odd_names_are_kept_as_they_are(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    users = ['a"b\\c{},', "é☃😀", "R1|x", "NULL", "0"]
    await reserved(rig, sale_id, *users)
    await rig.recalibrate(sale_id)
    assert await rig.reserve([item(sale_id, user) for user in users]) == [OK] * len(users)
    page = await rig.inventory.ListReservations(pb.ListReservationsRequest(sale_id=sale_id))
    assert {reservation.user_id for reservation in page.reservations} == set(users)


async def test_upper_case_ids_are_the_same_ids(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    (reservation_id,) = await reserved(rig, sale_id, "a")
    shouted = item(sale_id, "a")
    shouted.reservation_id, shouted.sale_id = reservation_id.upper(), sale_id.upper()
    assert await rig.reserve([shouted]) == [OK]
    assert await rig.confirm([reservation_id.upper()]) == [(OK, [1])]
    assert await rig.stock(sale_id) == (9, 0, 1)


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_has_one_to_a_thousand_items(rig: InventoryRig, count: int) -> None:
    sale_id = str(uuid.uuid4())
    for call in (
        rig.reserve([item(sale_id, f"u{number}") for number in range(count)]),
        rig.confirm([str(uuid.uuid4()) for _ in range(count)]),
        rig.release([str(uuid.uuid4()) for _ in range(count)]),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc_error(caught.value).violations


async def test_a_full_batch_over_many_sales_is_answered_in_order(rig: InventoryRig) -> None:
    sales = [await rig.open_sale(150) for _ in range(5)]
    items = [item(sales[number % 5], f"u{number}") for number in range(1_000)]
    reasons = await rig.reserve(items)
    for place, sale_id in enumerate(sales):
        assert reasons[place::5] == [OK] * 150 + [SOLD_OUT] * 50
        assert await rig.stock(sale_id) == (0, 150, 0)


async def test_a_confirmed_reservation_owns_the_lowest_free_numbers_for_good(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    first, second = await reserved(rig, sale_id, "a", "b", quantity=2)
    assert await rig.confirm([second, first]) == [(OK, [1, 2]), (OK, [3, 4])]
    assert await rig.confirm([first, second, first]) == [(OK, [3, 4]), (OK, [1, 2]), (OK, [3, 4])]
    assert await rig.release([second], revoke_sold=True) == [OK]
    third, fourth = await reserved(rig, sale_id, "c", "d", quantity=3)
    assert await rig.confirm([third, fourth]) == [(OK, [1, 2, 5]), (OK, [6, 7, 8])]
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (2, 0, 8)


async def test_confirming_what_is_not_there_or_released_or_malformed(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    released, kept = await reserved(rig, sale_id, "a", "b")
    await rig.release([released])
    assert await rig.confirm([released, str(uuid.uuid4()), "x", kept]) == [
        (R.ERROR_REASON_RESERVATION_RELEASED, []),
        (R.ERROR_REASON_RESERVATION_NOT_FOUND, []),
        (R.ERROR_REASON_INVALID_ARGUMENT, []),
        (OK, [1]),
    ]


async def test_releasing_gives_the_unit_back_at_once_and_spends_the_id(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    (taken,) = await reserved(rig, sale_id, "a")
    assert await rig.release([taken, taken]) == [OK, OK]
    assert await rig.release([taken]) == [OK]
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (1, 0, 0)
    assert await rig.reserve([item(sale_id, "a")]) == [R.ERROR_REASON_RESERVATION_RELEASED]
    assert await rig.stock(sale_id) == (1, 0, 0)
    await rig.recalibrate(sale_id)
    assert await rig.reserve([item(sale_id, "a"), item(sale_id, "a", "r2")]) == [
        R.ERROR_REASON_RESERVATION_RELEASED,
        OK,
    ]


async def test_a_sold_reservation_is_given_back_only_when_revoked(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(2)
    sold, unsold = await reserved(rig, sale_id, "a", "b")
    await rig.confirm([sold])
    missing = str(uuid.uuid4())
    assert await rig.release([sold, unsold, missing, "x"]) == [
        R.ERROR_REASON_RESERVATION_SOLD,
        OK,
        R.ERROR_REASON_RESERVATION_NOT_FOUND,
        R.ERROR_REASON_INVALID_ARGUMENT,
    ]
    assert await rig.stock(sale_id) == (1, 0, 1)
    assert await rig.release([sold], revoke_sold=True) == [OK]
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (2, 0, 0)
    assert await rig.confirm([sold]) == [(R.ERROR_REASON_RESERVATION_RELEASED, [])]


async def test_moves_are_forgotten_once_the_gate_has_followed(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    first, second = await reserved(rig, sale_id, "a", "b")
    await rig.confirm([first])
    await rig.release([first, second], revoke_sold=True)
    assert await rig.sql("SELECT count(*) FROM gate_moves WHERE sale_id = %s", sale_id) == [(0,)]


async def test_reservations_are_listed_oldest_first_page_by_page_and_by_state(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(20)
    ids = await reserved(rig, sale_id, *(f"u{number}" for number in range(7)), quantity=2)
    await rig.confirm(ids[:2])
    await rig.release(ids[2:3])

    async def listed(**given: Any) -> list[pb.Reservation]:
        found: list[pb.Reservation] = []
        token = ""
        while True:
            request = pb.ListReservationsRequest(sale_id=sale_id, page_size=3, page_token=token, **given)
            page = await rig.inventory.ListReservations(request)
            assert len(page.reservations) <= 3
            found += page.reservations
            token = page.next_page_token
            if not token:
                return found

    everything = await listed()
    assert sorted(one.reservation_id for one in everything) == sorted(ids)
    times = [(one.create_time.ToNanoseconds(), one.reservation_id) for one in everything]
    assert times == sorted(times)
    sold = await listed(state=pb.ReservationState.RESERVATION_STATE_SOLD)
    assert sorted(one.reservation_id for one in sold) == sorted(ids[:2])
    assert sorted(number for one in sold for number in one.share_numbers) == [1, 2, 3, 4]
    assert len(await listed(state=pb.ReservationState.RESERVATION_STATE_RESERVED)) == 4
    (given_back,) = await listed(state=pb.ReservationState.RESERVATION_STATE_RELEASED)
    assert (given_back.reservation_id, list(given_back.share_numbers)) == (ids[2], [])
    assert (given_back.user_id, given_back.request_id, given_back.quantity) == ("u2", "r1", 2)
    assert await listed(min_age_ms=60_000) == []


@pytest.mark.parametrize("given", [{"min_age_ms": -1}, {"page_size": -1}, {"state": 9}, {"page_token": "x"}])
async def test_a_wrong_list_request_is_refused(rig: InventoryRig, given: dict[str, Any]) -> None:
    sale_id = await rig.open_sale(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.inventory.ListReservations(pb.ListReservationsRequest(sale_id=sale_id, **given))
    assert [field for field, _ in from_rpc_error(caught.value).violations] == list(given)
