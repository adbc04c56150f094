"""Following purchases over gRPC: reading, watching, cancelling, listing, counting."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.errors import DomainError, from_rpc_error
from tests.support.purchase_rig import PurchaseRig, purchase_rig, wish
from tests.support.servers import Servers
from tests.support.waiting import eventually

_R = ErrorReason
NOBODYS = str(uuid.uuid4())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rig(servers: Servers) -> AsyncIterator[PurchaseRig]:
    async with purchase_rig(servers, watch_interval_ms=20, watches_max=60) as running:
        yield running


async def claim(rig: PurchaseRig, purchase_id: str) -> None:
    """What a settlement worker does first."""
    await rig.sql(
        "UPDATE purchases SET state = 'SETTLING', attempts = attempts + 1, update_time = clock_timestamp(), "
        "claim_time = clock_timestamp(), first_claim_time = clock_timestamp() "
        "WHERE purchase_id = %s AND state = 'RESERVED'",
        uuid.UUID(purchase_id),
    )


async def end(rig: PurchaseRig, purchase_id: str, state: str, changes: str) -> None:
    """What a settlement worker does last."""
    await rig.sql(
        f"UPDATE purchases SET state = %s, {changes}, update_time = clock_timestamp(), "
        "final_time = clock_timestamp() WHERE purchase_id = %s",
        state,
        uuid.UUID(purchase_id),
    )


async def error_of(call: Any) -> DomainError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


async def error_if_any(call: Any) -> DomainError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def test_another_users_purchase_looks_as_if_it_were_not_there(rig: PurchaseRig) -> None:
    purchase_id = (await rig.buy(await rig.new_sale())).purchase_id
    for wanted, user in ((purchase_id, "bob"), (NOBODYS, ""), (NOBODYS, "alice")):
        named = {"purchase_id": wanted, "user_id": user}
        got = await error_of(rig.purchases.GetPurchase(pb.GetPurchaseRequest(**named)))
        cancelled = await error_of(rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(**named)))
        assert {got.reason, cancelled.reason} == {_R.ERROR_REASON_PURCHASE_NOT_FOUND}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(**named)).read()
        assert from_rpc_error(error.value).reason == _R.ERROR_REASON_PURCHASE_NOT_FOUND
    malformed = await error_of(rig.purchases.GetPurchase(pb.GetPurchaseRequest(purchase_id="x")))
    assert malformed.violations[0][0] == "purchase_id"


async def test_a_cancelled_purchase_gives_its_units_back_at_once(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=3)
    purchase = await rig.buy(sale, quantity=2)
    request = pb.CancelPurchaseRequest(purchase_id=purchase.purchase_id, user_id="alice")
    first = (await rig.purchases.CancelPurchase(request)).purchase
    assert first.state == pb.PURCHASE_STATE_CANCELLED
    assert await rig.stock(sale) == (3, 0, 0)
    rows = await rig.sql(
        "SELECT cleanup_pending, final_time IS NULL FROM purchases WHERE sale_id = %s", uuid.UUID(sale)
    )
    assert rows == [(False, False)]
    assert (await rig.purchases.CancelPurchase(request)).purchase.state == pb.PURCHASE_STATE_CANCELLED
    assert (await rig.buy(sale, quantity=2)).state == pb.PURCHASE_STATE_CANCELLED
    assert await rig.stock(sale) == (3, 0, 0)


@pytest.mark.parametrize("state", ["SETTLING", "CONFIRMED", "FAILED"])
async def test_a_cancel_loses_to_a_claim(rig: PurchaseRig, state: str) -> None:
    sale = await rig.new_sale()
    purchase_id = (await rig.buy(sale)).purchase_id
    await claim(rig, purchase_id)
    if state == "CONFIRMED":
        await end(rig, purchase_id, state, "share_numbers = '{1}'")
    elif state == "FAILED":
        await end(rig, purchase_id, state, "reason = 20")
    refused = await error_of(rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=purchase_id)))
    assert (refused.reason, refused.metadata) == (_R.ERROR_REASON_PURCHASE_NOT_CANCELLABLE, {"state": state})
    assert await rig.stock(sale) == (99, 1, 0)


async def test_of_a_cancel_and_a_claim_at_once_one_wins(rig: PurchaseRig) -> None:
    sale = await rig.new_sale()
    for number in range(20):
        purchase_id = (await rig.buy(sale, f"user-{number}")).purchase_id
        cancel = rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=purchase_id))
        claimed = asyncio.ensure_future(claim(rig, purchase_id))
        lost = await error_if_any(cancel)
        await claimed
        state = (await rig.purchases.GetPurchase(pb.GetPurchaseRequest(purchase_id=purchase_id))).purchase.state
        if lost is None:
            assert state == pb.PURCHASE_STATE_CANCELLED
        else:
            assert lost.reason == _R.ERROR_REASON_PURCHASE_NOT_CANCELLABLE
            assert state == pb.PURCHASE_STATE_SETTLING


async def last_of(watch: Any) -> pb.Purchase:
    """The last purchase that a watch shows."""
    last = pb.Purchase()
    while (message := await watch.read()) != grpc.aio.EOF:
        last = message.purchase
    return last


async def test_a_watch_shows_each_state_and_ends_after_the_final_one(rig: PurchaseRig) -> None:
    purchase_id = (await rig.buy(await rig.new_sale())).purchase_id
    watch = rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=purchase_id, user_id="alice"), timeout=20)
    assert (await watch.read()).purchase.state == pb.PURCHASE_STATE_RESERVED
    await claim(rig, purchase_id)
    assert (await watch.read()).purchase.state == pb.PURCHASE_STATE_SETTLING
    await end(rig, purchase_id, "CONFIRMED", "share_numbers = '{7}'")
    final = (await watch.read()).purchase
    assert (final.state, list(final.share_numbers)) == (pb.PURCHASE_STATE_CONFIRMED, [7])
    assert await watch.read() == grpc.aio.EOF
    assert await watch.code() == grpc.StatusCode.OK


async def test_a_watch_of_a_final_purchase_ends_at_once(rig: PurchaseRig) -> None:
    purchase_id = (await rig.buy(await rig.new_sale())).purchase_id
    await rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=purchase_id))
    watch = rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=purchase_id), timeout=20)
    assert [each.purchase.state async for each in watch] == [pb.PURCHASE_STATE_CANCELLED]


async def test_many_watchers_of_many_purchases_all_see_the_end(rig: PurchaseRig) -> None:
    sale = await rig.new_sale()
    ids = [(await rig.buy(sale, f"user-{number}")).purchase_id for number in range(10)]
    watches = [rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=each), timeout=20) for each in ids * 4]
    firsts = await asyncio.gather(*(watch.read() for watch in watches))
    assert [first.purchase.purchase_id for first in firsts] == ids * 4
    for each in ids:
        await end(rig, each, "FAILED", "reason = 20")
    lasts = await asyncio.gather(*(last_of(watch) for watch in watches))
    assert [last.purchase_id for last in lasts] == ids * 4
    assert {last.reason for last in lasts} == {_R.ERROR_REASON_INSUFFICIENT_FUNDS}

    async def none_left() -> bool:
        return rig.running.watching.watches == 0

    await eventually(none_left)


async def test_watches_are_bounded_and_those_given_up_make_room(rig: PurchaseRig) -> None:
    purchase_id = (await rig.buy(await rig.new_sale())).purchase_id
    request = pb.WatchPurchaseRequest(purchase_id=purchase_id)
    watches = [rig.purchases.WatchPurchase(request, timeout=20) for _ in range(60)]
    await asyncio.gather(*(watch.read() for watch in watches))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.purchases.WatchPurchase(request, timeout=20).read()
    overloaded = from_rpc_error(error.value)
    assert (overloaded.reason, overloaded.code) == (_R.ERROR_REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert overloaded.retry_after_ms > 0
    for watch in watches:
        watch.cancel()

    async def none_left() -> bool:
        return rig.running.watching.watches == 0

    await eventually(none_left)
    assert (await rig.purchases.WatchPurchase(request, timeout=20).read()).purchase.purchase_id == purchase_id


async def test_a_watch_ends_with_unavailable_when_the_process_drains(servers: Servers) -> None:
    async with purchase_rig(servers) as own:
        purchase_id = (await own.buy(await own.new_sale())).purchase_id
        watch = own.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=purchase_id), timeout=20)
        assert (await watch.read()).purchase.purchase_id == purchase_id
        own.running.watching.drain()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await own.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=purchase_id), timeout=20).read()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def pages(rig: PurchaseRig, **wanted: object) -> list[list[pb.Purchase]]:
    """All pages of a list."""
    found, token = [], ""
    while True:
        request = pb.ListPurchasesRequest(page_token=token, **wanted)  # type: ignore[arg-type]
        response = await rig.purchases.ListPurchases(request, timeout=10)
        found.append(list(response.purchases))
        token = response.next_page_token
        if not token:
            return found


async def test_lists_page_through_everything_once_in_order(rig: PurchaseRig) -> None:
    sale, other = await rig.new_sale(total=100), await rig.new_sale(total=100)
    users = [f"lister-{number}" for number in range(25)]
    requests = [wish(each, user) for each in (sale, other) for user in users]
    await rig.purchases.BatchCreatePurchases(pb.BatchCreatePurchasesRequest(requests=requests))
    found = await pages(rig, sale_id=sale, page_size=10)
    assert [len(page) for page in found] == [10, 10, 5]
    ids = [purchase.purchase_id for page in found for purchase in page]
    assert ids == sorted(set(ids))
    assert {purchase.user_id for page in found for purchase in page} == set(users)
    assert {each.sale_id for each in (await pages(rig, user_id="lister-3"))[0]} == {sale, other}
    assert [each.sale_id for each in (await pages(rig, user_id="lister-3", sale_id=other))[0]] == [other]
    await rig.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=ids[4]))
    cancelled = await pages(rig, sale_id=sale, state=pb.PURCHASE_STATE_CANCELLED)
    assert [each.purchase_id for each in cancelled[0]] == [ids[4]]
    assert sum(len(page) for page in await pages(rig, sale_id=sale, state=pb.PURCHASE_STATE_RESERVED)) == 24
    everything = [each.purchase_id for page in await pages(rig, page_size=7) for each in page]
    assert everything == sorted(set(everything))
    assert set(ids) < set(everything)
    assert await pages(rig, sale_id=NOBODYS) == [[]]


@pytest.mark.parametrize("wrong", [{"page_token": "x"}, {"page_size": -1}, {"sale_id": "x"}, {"state": 77}])
async def test_a_wrong_list_request_is_refused_by_field(rig: PurchaseRig, wrong: dict[str, object]) -> None:
    refused = await error_of(rig.purchases.ListPurchases(pb.ListPurchasesRequest(**wrong)))  # type: ignore[arg-type]
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in refused.violations] == list(wrong)


async def test_a_summary_counts_by_state_and_reason(rig: PurchaseRig) -> None:
    sale = await rig.new_sale()
    bought = [await rig.buy(sale, f"user-{number}", quantity=2) for number in range(4)]
    await claim(rig, bought[0].purchase_id)
    await end(rig, bought[0].purchase_id, "CONFIRMED", "share_numbers = '{1,2}'")
    await end(rig, bought[1].purchase_id, "FAILED", "reason = 20")

    async def counted() -> bool:
        summary = await rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id=sale))
        found = {(each.state, each.reason): (each.purchases, each.units) for each in summary.counts}
        return (
            summary.queued_messages > 0
            and summary.dead_letters == 0
            and found
            == {
                (pb.PURCHASE_STATE_RESERVED, 0): (2, 4),
                (pb.PURCHASE_STATE_CONFIRMED, 0): (1, 2),
                (pb.PURCHASE_STATE_FAILED, _R.ERROR_REASON_INSUFFICIENT_FUNDS): (1, 2),
            }
        )

    await eventually(counted)
    summary = await rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id=sale))
    assert summary.first_claim_time.ToNanoseconds() < summary.last_final_time.ToNanoseconds()
    empty = await rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id=NOBODYS))
    assert (list(empty.counts), empty.HasField("first_claim_time")) == ([], False)
    malformed = await error_of(rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id="x")))
    assert malformed.code == grpc.StatusCode.INVALID_ARGUMENT
