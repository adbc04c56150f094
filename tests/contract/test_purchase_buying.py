"""Buying over gRPC, with the real Inventory Service: one request is one purchase, each buyer gets its own answer."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.errors import DomainError, from_rpc_error
from mesh.identity import partition_of, purchase_id
from tests.support.purchase_rig import PurchaseRig, purchase_rig, wish
from tests.support.servers import Servers

_R = ErrorReason


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rig(servers: Servers) -> AsyncIterator[PurchaseRig]:
    async with purchase_rig(servers) as running:
        yield running


async def refused(rig: PurchaseRig, request: pb.CreatePurchaseRequest) -> DomainError:
    """The error of a CreatePurchase that must not succeed."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.purchases.CreatePurchase(request, timeout=10)
    return from_rpc_error(error.value)


async def batch(rig: PurchaseRig, requests: list[pb.CreatePurchaseRequest]) -> list[pb.CreatePurchaseOutcome]:
    response = await rig.purchases.BatchCreatePurchases(pb.BatchCreatePurchasesRequest(requests=requests), timeout=10)
    return list(response.outcomes)


async def test_a_purchase_is_durable_when_it_is_answered(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=5, price=1250)
    purchase = await rig.buy(sale, quantity=2)
    assert purchase.purchase_id == str(purchase_id("alice", sale, "r1"))
    assert (purchase.state, purchase.quantity) == (pb.PURCHASE_STATE_RESERVED, 2)
    assert (purchase.amount.amount_minor, purchase.amount.currency_code) == (2500, "EUR")
    query = "SELECT state, amount_minor, partition FROM purchases WHERE purchase_id = %s"
    assert await rig.sql(query, uuid.UUID(purchase.purchase_id)) == [("RESERVED", 2500, partition_of("alice", 16))]
    read = await rig.purchases.GetPurchase(pb.GetPurchaseRequest(purchase_id=purchase.purchase_id, user_id="alice"))
    assert read.purchase == purchase
    assert await rig.stock(sale) == (3, 2, 0)


async def test_a_repetition_is_the_same_purchase_and_takes_no_more_stock(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=5)
    first = await rig.buy(sale)
    assert await rig.buy(sale) == first
    assert (await batch(rig, [wish(sale)]))[0].purchase_id == first.purchase_id
    assert await rig.stock(sale) == (4, 1, 0)


async def test_a_winner_who_repeats_after_the_sale_is_sold_out_is_not_told_it_lost(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1)
    first = await rig.buy(sale)
    lost = await refused(rig, wish(sale, "bob"))
    assert (lost.reason, lost.code) == (_R.ERROR_REASON_SOLD_OUT, grpc.StatusCode.FAILED_PRECONDITION)
    assert lost.metadata == {"sale_id": sale}
    assert await rig.buy(sale) == first


async def test_sold_out_is_not_remembered(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1)
    first = await rig.buy(sale)
    assert (await refused(rig, wish(sale, "bob"))).reason == _R.ERROR_REASON_SOLD_OUT
    await rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=first.purchase_id))
    assert (await rig.buy(sale, "bob")).state == pb.PURCHASE_STATE_RESERVED


async def test_the_same_id_with_other_contents_is_refused(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=9)
    await rig.buy(sale, quantity=1)
    reused = await refused(rig, wish(sale, quantity=2))
    assert (reused.reason, reused.code) == (_R.ERROR_REASON_REQUEST_ID_REUSED, grpc.StatusCode.ALREADY_EXISTS)
    assert await rig.stock(sale) == (8, 1, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "ü"}, "request_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"sale_id": "1"}, "sale_id"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": -5}, "quantity"),
        ({"quantity": 2_000_000_000}, "quantity"),
    ],
)
async def test_bad_input_is_refused_by_field(rig: PurchaseRig, changes: dict[str, object], field: str) -> None:
    good = {"request_id": "r1", "user_id": "alice", "sale_id": str(uuid.uuid4()), "quantity": 1}
    error = await refused(rig, pb.CreatePurchaseRequest(**(good | changes)))  # type: ignore[arg-type]
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in error.violations] == [field]


async def test_what_the_sale_forbids_is_told_by_its_reason(rig: PurchaseRig) -> None:
    draft = await rig.new_sale(opened=False)
    sale = await rig.new_sale(per_user=2, per_purchase=2)
    await rig.buy(sale, "carol", "c1", 2)
    asked = [
        wish(draft),
        wish(str(uuid.uuid4())),
        wish(sale, "carol", "c2"),
        wish(sale, "dave", "d1", 3),
        wish(sale, "dave", "d2", 2),
    ]
    assert [outcome.reason for outcome in await batch(rig, asked)] == [
        _R.ERROR_REASON_SALE_NOT_OPEN,
        _R.ERROR_REASON_SALE_NOT_FOUND,
        _R.ERROR_REASON_USER_LIMIT_REACHED,
        _R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED,
        _R.ERROR_REASON_UNSPECIFIED,
    ]


@pytest.mark.parametrize("size", [5, 300])
async def test_a_bad_item_never_fails_its_neighbours(rig: PurchaseRig, size: int) -> None:
    sale = await rig.new_sale(total=1000)
    requests = [wish(sale, f"user-{number}", quantity=0 if number % 5 == 2 else 1) for number in range(size)]
    outcomes = await batch(rig, requests)
    for number, outcome in enumerate(outcomes):
        if number % 5 == 2:
            assert outcome == pb.CreatePurchaseOutcome(reason=_R.ERROR_REASON_INVALID_ARGUMENT)
        else:
            assert outcome.purchase_id == str(purchase_id(f"user-{number}", sale, "r1"))
            assert (outcome.reason, outcome.state) == (0, pb.PURCHASE_STATE_RESERVED)


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_of_a_wrong_size_is_refused_as_a_whole(rig: PurchaseRig, count: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await batch(rig, [wish(str(uuid.uuid4()))] * count)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_batch_of_the_largest_size_is_answered_in_order(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=600)
    outcomes = await batch(rig, [wish(sale, f"user-{number}") for number in range(1000)])
    assert [each.purchase_id for each in outcomes] == [
        str(purchase_id(f"user-{number}", sale, "r1")) for number in range(1000)
    ]
    assert Counter(outcome.reason for outcome in outcomes) == {0: 600, _R.ERROR_REASON_SOLD_OUT: 400}
    assert await rig.stock(sale) == (0, 600, 0)
    assert await rig.sql("SELECT count(*) FROM purchases WHERE sale_id = %s", uuid.UUID(sale)) == [(600,)]


@pytest.mark.parametrize("others", [0, 100])
async def test_a_request_twice_in_a_batch_is_answered_twice_alike(rig: PurchaseRig, others: int) -> None:
    sale = await rig.new_sale(total=1000)
    requests = [wish(sale), wish(sale), wish(sale, quantity=2)]
    outcomes = await batch(rig, requests + [wish(sale, f"user-{number}") for number in range(others)])
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].reason, outcomes[2].reason) == (0, _R.ERROR_REASON_REQUEST_ID_REUSED)
    assert (await rig.stock(sale))[1] == 1 + others


async def test_two_calls_with_the_same_id_at_once_make_one_purchase(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1000)
    requests = [wish(sale), *(wish(sale, f"user-{number}") for number in range(100))]
    alone, in_batches = await asyncio.gather(
        asyncio.gather(*(rig.buy(sale) for _ in range(40))),
        asyncio.gather(*(batch(rig, requests) for _ in range(10))),
    )
    ids = {purchase.purchase_id for purchase in alone} | {outcomes[0].purchase_id for outcomes in in_batches}
    assert ids == {str(purchase_id("alice", sale, "r1"))}
    assert await rig.stock(sale) == (899, 101, 0)
    assert await rig.sql("SELECT count(*) FROM purchases WHERE sale_id = %s", uuid.UUID(sale)) == [(101,)]


async def test_of_two_contents_of_one_id_at_once_one_wins(rig: PurchaseRig) -> None:
    for round_number in range(10):
        sale = await rig.new_sale(total=100)
        calls = (rig.buy(sale, request=f"r{round_number}", quantity=1 + number % 2) for number in range(10))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        bought = [answer for answer in answers if isinstance(answer, pb.Purchase)]
        reused = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert len({purchase.quantity for purchase in bought}) == 1
        assert (len(bought), len(reused)) == (5, 5)
        assert {error.reason for error in reused} == {_R.ERROR_REASON_REQUEST_ID_REUSED}
        assert (await rig.stock(sale))[1] == bought[0].quantity


async def test_each_caller_gets_its_own_answer_under_load(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=400)
    buyers = [f"user-{number}" for number in range(800)]

    async def outcome_of(user: str) -> pb.Purchase | DomainError:
        try:
            return await rig.buy(sale, user, f"key-{user}", 1)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)

    answers = await asyncio.gather(*(outcome_of(user) for user in buyers))
    bought = {user: each for user, each in zip(buyers, answers, strict=True) if isinstance(each, pb.Purchase)}
    assert len(bought) == 400
    for user, purchase in bought.items():
        assert (purchase.user_id, purchase.request_id) == (user, f"key-{user}")
        assert purchase.purchase_id == str(purchase_id(user, sale, f"key-{user}"))
    assert {each.reason for each in answers if isinstance(each, DomainError)} == {_R.ERROR_REASON_SOLD_OUT}
    owners = await rig.sql("SELECT user_id FROM purchases WHERE sale_id = %s", uuid.UUID(sale))
    assert {owner for (owner,) in owners} == set(bought)


@pytest.mark.parametrize(
    ("state", "shown"), [("FAILED", pb.PURCHASE_STATE_FAILED), ("CONFIRMED", pb.PURCHASE_STATE_CONFIRMED)]
)
async def test_a_repetition_shows_what_became_of_the_purchase(rig: PurchaseRig, state: str, shown: int) -> None:
    sale = await rig.new_sale()
    purchase = await rig.buy(sale)
    ids = [purchase.purchase_id]
    if state == "FAILED":
        await rig.inventory.BatchReleaseReservations(inventory_pb.BatchReleaseReservationsRequest(reservation_ids=ids))
        changes = f"reason = {_R.ERROR_REASON_INSUFFICIENT_FUNDS}"
    else:
        await rig.inventory.BatchConfirmReservations(inventory_pb.BatchConfirmReservationsRequest(reservation_ids=ids))
        changes = "share_numbers = '{1}'"
    await rig.sql(
        f"UPDATE purchases SET state = %s, final_time = now(), {changes} WHERE purchase_id = %s",
        state,
        uuid.UUID(purchase.purchase_id),
    )
    again = await rig.buy(sale)
    assert (again.purchase_id, again.state) == (purchase.purchase_id, shown)
    assert (await batch(rig, [wish(sale)]))[0] == pb.CreatePurchaseOutcome(
        purchase_id=purchase.purchase_id, state=again.state
    )


async def test_an_id_whose_units_were_given_back_before_a_purchase_is_spent(rig: PurchaseRig) -> None:
    sale = await rig.new_sale()
    reservation_id = str(purchase_id("alice", sale, "r1"))
    item = inventory_pb.ReserveItem(
        reservation_id=reservation_id, sale_id=sale, user_id="alice", request_id="r1", quantity=1
    )
    await rig.inventory.BatchReserveShares(inventory_pb.BatchReserveSharesRequest(items=[item]))
    release = inventory_pb.BatchReleaseReservationsRequest(reservation_ids=[reservation_id])
    await rig.inventory.BatchReleaseReservations(release)
    assert (await refused(rig, wish(sale))).reason == _R.ERROR_REASON_RESERVATION_RELEASED


async def test_a_reservation_without_a_purchase_is_completed_by_a_repetition(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1)
    item = inventory_pb.ReserveItem(
        reservation_id=str(purchase_id("alice", sale, "r1")), sale_id=sale, user_id="alice", request_id="r1", quantity=1
    )
    await rig.inventory.BatchReserveShares(inventory_pb.BatchReserveSharesRequest(items=[item]))
    assert (await rig.buy(sale)).state == pb.PURCHASE_STATE_RESERVED
    assert await rig.stock(sale) == (0, 1, 0)
