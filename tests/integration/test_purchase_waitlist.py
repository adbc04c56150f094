"""Purchases that wait in line: promoted by whatever frees a unit, cancelled, closed, and followed by any number of
processes that may break off anywhere."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.errors import DomainError
from mesh.postgres import Queries
from purchase_svc.purchase import Wish
from purchase_svc.purchase_book import SQL_FOLDER, Terms
from purchase_svc.settlement_services import SettlementServices
from purchase_svc.sweep_book import SweepBook
from purchase_svc.waitlist_book import WaitlistBook
from purchase_svc.waitlist_follower import WaitlistFollower
from tests.support.life_rig import LifeRig, error_of, life_rig, name_of, serving
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE
from tests.support.waiting import eventually

_R = ErrorReason
SALE_CLOSED = f"FAILED {_R.ERROR_REASON_SALE_CLOSED}"
NO_FUNDS = f"FAILED {_R.ERROR_REASON_INSUFFICIENT_FUNDS}"
ABANDONED = f"FAILED {_R.ERROR_REASON_ABANDONED}"


class KilledError(BaseException):
    """The process has ended here."""


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    async with life_rig(servers) as made:
        yield made


async def line_of(rig: LifeRig, users: Sequence[str], *, holder: str = "bob", total: int = 1) -> tuple[str, list[str]]:
    """A sale of which ``holder`` has reserved everything while ``users`` wait: the ids of their purchases."""
    await rig.services.new_sale(total, per_user=total, per_purchase=total)
    await rig.services.fund([holder, *users])
    first = await rig.buy(holder, total)
    outcomes = await rig.buy_all(users, waitlist=True)
    assert [name_of(each.state) for each in outcomes] == ["WAITLISTED"] * len(users)
    return first.purchase_id, [each.purchase_id for each in outcomes]


def follower(rig: LifeRig, services: SettlementServices, publisher: Any = None, **changes: Any) -> WaitlistFollower:
    """What follows the waitlist in a settlement process."""
    pool = rig.services.pool
    return WaitlistFollower(
        changes.get("book") or WaitlistBook(pool),
        SweepBook(pool),
        rig.services.book,
        services,
        publisher or rig.services.publisher,
        abandoned_after_s=changes.get("abandoned_after_s", 60.0),
    )


async def untold(rig: LifeRig) -> int:
    """Outcomes that nobody has acknowledged."""
    request = inventory_pb.ListWaitlistOutcomesRequest()
    return len((await rig.services.inventory.ListWaitlistOutcomes(request)).entries)


async def test_who_waits_is_served_when_another_cannot_pay(rig: LifeRig) -> None:
    await rig.services.new_sale(1)
    await rig.services.fund(["ann"])
    await rig.services.fund(["poor"], 1)
    poor = await rig.buy("poor")
    assert (await error_of(rig.buy("ann"))).reason == _R.ERROR_REASON_SOLD_OUT
    waiting = await rig.buy("ann", waitlist=True)
    assert (name_of(waiting.state), waiting.waitlist_position, waiting.estimated_wait_s) == ("WAITLISTED", 1, 1)
    async with rig.services.worker():
        assert list((await rig.until(waiting.purchase_id, "CONFIRMED")).share_numbers) == [1]
        assert await rig.finished([poor.purchase_id, waiting.purchase_id]) == {NO_FUNDS: 1, "CONFIRMED": 1}
    await rig.services.audit()
    steps = [name_of(step.state) for step in (await rig.receipt(waiting.purchase_id)).steps]
    assert steps == ["WAITLISTED", "RESERVED", "SETTLING", "CONFIRMED"]
    assert await untold(rig) == 0


async def test_who_waits_is_served_when_another_cancels(rig: LifeRig) -> None:
    first, (ann, cid) = await line_of(rig, ["ann", "cid"])
    assert name_of((await rig.cancel(first)).state) == "CANCELLED"
    async with rig.services.worker():
        await rig.until(ann, "CONFIRMED")
        behind = await rig.get(cid)
    assert (name_of(behind.state), behind.waitlist_position) == ("WAITLISTED", 1)


async def test_who_waits_is_served_with_a_share_that_was_refunded(rig: LifeRig) -> None:
    first, (ann, cid) = await line_of(rig, ["ann", "cid"])
    async with rig.services.worker():
        await rig.until(first, "CONFIRMED")
        await rig.refund(first)
        assert list((await rig.until(ann, "CONFIRMED")).share_numbers) == [1]
        await rig.until(first, "REFUNDED")
        await rig.cancel(cid)
        assert await rig.finished([first, ann, cid]) == {"REFUNDED": 1, "CONFIRMED": 1, "CANCELLED": 1}
    await rig.services.audit()
    assert await rig.services.stock() == (0, 0, 1)


async def test_everyone_is_told_the_place_and_an_estimate(servers: Servers) -> None:
    async with life_rig(servers, serve={"waitlist_rate_per_s": 2.0}) as rig:
        users = [f"user{n}" for n in range(5)]
        await rig.services.new_sale(1)
        await rig.buy("bob")
        outcomes = await rig.buy_all(users, waitlist=True)
        assert [(each.waitlist_position, each.estimated_wait_s) for each in outcomes] == [
            (1, 1), (2, 1), (3, 2), (4, 2), (5, 3),
        ]  # fmt: skip
        ids = [each.purchase_id for each in outcomes]
        assert [(await rig.get(each)).waitlist_position for each in ids] == [1, 2, 3, 4, 5]
        await rig.cancel(ids[1])
        places = await asyncio.gather(*(rig.get(each) for each in ids))
        assert [each.waitlist_position for each in places] == [1, 0, 2, 3, 4]
        stream = rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=ids[4]), timeout=20)
        first = (await anext(stream.__aiter__())).purchase
        assert (name_of(first.state), first.waitlist_position, first.estimated_wait_s) == ("WAITLISTED", 4, 2)
        stream.cancel()
        again = await rig.buy(users[4])
        assert (name_of(again.state), again.waitlist_position, again.purchase_id) == ("WAITLISTED", 4, ids[4])
        await rig.services.inventory_service.stop()
        alone = await rig.get(ids[4])
        assert (name_of(alone.state), alone.waitlist_position, alone.estimated_wait_s) == ("WAITLISTED", 0, 0)
        await rig.services.inventory_service.start()


async def test_who_waits_is_neither_queued_nor_swept_nor_counted_as_unsettled(rig: LifeRig) -> None:
    first, ids = await line_of(rig, [f"user{n}" for n in range(20)])
    keys = list(map(uuid.UUID, ids))
    sweep = SweepBook(rig.services.pool)
    await rig.services.sql("UPDATE purchases SET create_time = now() - interval '1 hour', queue_time = NULL")
    assert await sweep.list_unqueued(age_s=1, limit=100) in ([], [(uuid.UUID(first), await partition_of(rig, first))])
    assert {key for key, _ in await sweep.list_lost(stale_s=1, empty_partitions=range(16), limit=100)} <= {
        uuid.UUID(first)
    }
    assert (await sweep.waiting()).purchases == 1
    async with rig.services.services() as services:
        # Even a message with their ids, whoever sent it, settles nothing.
        settled = await rig.services.settlement(services).settle(keys)
    assert (settled.endings, settled.retries, settled.missing) == ((), (), ())
    async with rig.services.worker(abandoned_after_ms=1_000):
        await rig.until(first, "CONFIRMED")
        assert await rig.services.states(keys) == {"WAITLISTED": 20}
    summary = await rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id=rig.sale_id))
    assert not summary.HasField("oldest_unsettled_time")


async def partition_of(rig: LifeRig, purchase_id: str) -> int:
    key = uuid.UUID(purchase_id)
    return (await rig.services.purchases.get_many([key]))[key].partition


async def test_a_claim_and_the_note_that_it_is_queued_touch_no_index(rig: LifeRig) -> None:
    await rig.services.new_sale(50)
    # So few that one page has room for every version.
    keys = list(map(str, await rig.services.buy([f"user{n}" for n in range(6)])))
    queries = Queries(SQL_FOLDER)
    async with await psycopg.AsyncConnection.connect(rig.services.settings.database_url) as conn:
        for statement in (queries.claim_purchases, queries.mark_requeued):
            await conn.execute(statement, {"purchase_ids": keys, "delay_s": 0.0})
        cursor = await conn.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'purchases'"
        )
        assert await cursor.fetchone() == (12, 12)


async def test_who_cancels_in_line_is_gone_for_good(rig: LifeRig) -> None:
    first, (ann, cid) = await line_of(rig, ["ann", "cid"])
    cancelled = await rig.cancel(ann)
    assert (name_of(cancelled.state), cancelled.waitlist_position) == ("CANCELLED", 0)
    assert name_of((await rig.cancel(ann)).state) == "CANCELLED"
    await rig.cancel(first)
    async with rig.services.worker():
        await rig.until(cid, "CONFIRMED")
        assert await rig.finished([first, ann, cid]) == {"CANCELLED": 2, "CONFIRMED": 1}
    assert name_of((await rig.buy("ann", waitlist=True)).state) == "CANCELLED"
    steps = [name_of(step.state) for step in (await rig.receipt(ann)).steps]
    assert steps == ["WAITLISTED", "CANCELLED"]
    assert await untold(rig) == 0
    await rig.services.audit()


async def test_of_a_cancel_in_line_and_a_promotion_at_once_one_wins_and_the_next_is_served(rig: LifeRig) -> None:
    await rig.services.new_sale(15, per_user=30)
    users = [f"user{n}" for n in range(15)]
    await rig.services.fund(["bob", *users, *(f"next{n}" for n in range(15))])
    first = [(await rig.buy("bob", request_id=f"r{n}")).purchase_id for n in range(15)]
    waiting = [each.purchase_id for each in await rig.buy_all(users, waitlist=True)]
    behind = [each.purchase_id for each in await rig.buy_all([f"next{n}" for n in range(15)], waitlist=True)]
    async with rig.services.worker():
        cancels = [rig.cancel(each) for pair in zip(first, waiting, strict=True) for each in pair]
        answers = await asyncio.gather(*cancels, return_exceptions=True)
        lost = [each for each in answers if isinstance(each, BaseException)]
        assert all(isinstance(each, grpc.aio.AioRpcError) for each in lost)
        states = await rig.finished([*first, *waiting])

        async def all_sold() -> bool:
            return await rig.services.stock() == (0, 0, 15)

        await eventually(all_sold)
        assert states == {"CANCELLED": 30 - len(lost)} | ({"CONFIRMED": len(lost)} if lost else {})
        await rig.close_sale()
        ends = await rig.finished([*waiting, *behind])
    kept = (await rig.services.states(list(map(uuid.UUID, first)))).get("CONFIRMED", 0)
    assert ends["CONFIRMED"] == 15 - kept
    await rig.services.audit()


async def test_closing_the_sale_ends_the_line_with_its_reason(rig: LifeRig) -> None:
    first, ids = await line_of(rig, [f"user{n}" for n in range(12)])
    async with rig.services.worker():
        await rig.close_sale()
        assert await rig.finished([first, *ids]) == {"CONFIRMED": 1, SALE_CLOSED: 12}
    assert await untold(rig) == 0
    receipt = await rig.receipt(ids[0])
    assert [name_of(step.state) for step in receipt.steps] == ["WAITLISTED", "FAILED"]
    assert receipt.words.startswith("The sale was closed before its turn in line came.")
    await rig.services.audit()


async def join(rig: LifeRig, wishes: Sequence[Wish]) -> list[int]:
    """Lets these join at the inventory alone, as a buy does first; their places."""
    items = [
        inventory_pb.ReserveItem(
            reservation_id=str(wish.purchase_id),
            sale_id=wish.sale_id,
            user_id=wish.user_id,
            request_id=wish.request_id,
            quantity=wish.quantity,
            join_waitlist=True,
        )
        for wish in wishes
    ]
    answer = await rig.services.inventory.BatchReserveShares(inventory_pb.BatchReserveSharesRequest(items=items))
    assert all(each.waiting and not each.reason for each in answer.outcomes)
    return [each.waitlist_position for each in answer.outcomes]


async def test_a_place_in_line_without_a_purchase_is_given_up_before_its_turn_comes(rig: LifeRig) -> None:
    await rig.services.new_sale(1)
    await rig.services.fund(["bob"])
    first = await rig.buy("bob")
    left = rig.services.wishes(["gone"])
    assert await join(rig, left) == [1]
    ann = await rig.buy("ann", waitlist=True)
    assert ann.waitlist_position == 2
    async with rig.services.worker():
        await rig.until(first.purchase_id, "CONFIRMED")

        async def is_first() -> bool:
            return (await rig.get(ann.purchase_id)).waitlist_position == 1

        await eventually(is_first, within_s=30)
        assert await rig.finished([str(left[0].purchase_id)]) == {ABANDONED: 1}
    assert name_of((await rig.get(ann.purchase_id)).state) == "WAITLISTED"


async def test_a_joiner_whose_buyer_broke_off_is_ended_and_the_next_is_served(rig: LifeRig) -> None:
    """Two stand before ann who have no purchase: one that is promoted, and one that still waits when it is found."""
    await rig.services.new_sale(1)
    await rig.services.fund(["bob", "ann"])
    first = await rig.buy("bob")
    left = rig.services.wishes(["gone1", "gone2"])
    assert await join(rig, left) == [1, 2]
    ann = await rig.buy("ann", waitlist=True)
    assert ann.waitlist_position == 3
    await rig.cancel(first.purchase_id)
    async with rig.services.worker():
        await rig.until(ann.purchase_id, "CONFIRMED", within_s=30)
        keys = [str(wish.purchase_id) for wish in left]

        async def recorded() -> bool:
            return await rig.services.states([wish.purchase_id for wish in left]) == {ABANDONED: 2}

        await eventually(recorded)
        await rig.finished([*keys, ann.purchase_id])

        async def all_told() -> bool:
            return await untold(rig) == 0

        await eventually(all_told)
    await rig.services.audit()
    # A late repetition by the buyer finds it ended.
    assert name_of((await rig.buy("gone1", waitlist=True)).state) == "FAILED"


async def test_an_outcome_is_kept_for_a_purchase_that_is_about_to_be_recorded(rig: LifeRig) -> None:
    await rig.services.new_sale(1)
    await rig.services.fund(["ann"])
    first = await rig.buy("bob")
    (wish,) = rig.services.wishes(["ann"])
    assert await join(rig, [wish]) == [1]
    await rig.cancel(first.purchase_id)
    async with rig.services.services() as services:
        followed = follower(rig, services)
        assert not await followed.follow()
        assert await untold(rig) == 1
        await rig.services.purchases.insert([wish], {wish.sale_id: Terms(PRICE, "EUR")}, {wish.purchase_id})
        assert await followed.follow()
    assert await untold(rig) == 0
    assert await rig.services.states([wish.purchase_id]) == {"RESERVED": 1}


def kill(owner: Any, method: str, *, after: bool) -> None:
    """Makes the owner's method raise KilledError, before or after it does its work."""
    work = getattr(owner, method)

    async def dying(*args: Any, **options: Any) -> Any:
        if after:
            await work(*args, **options)
        raise KilledError

    setattr(owner, method, dying)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["end_waiting", "publish", "acknowledge_outcomes"])
async def test_a_follower_broken_off_at_any_step_is_finished_by_the_next(rig: LifeRig, step: str, after: bool) -> None:
    first, ids = await line_of(rig, [f"user{n}" for n in range(6)], total=3)
    await rig.cancel(first)
    await rig.cancel(ids[5])
    publisher = rig.services.publisher
    async with rig.services.services() as services:
        book = WaitlistBook(rig.services.pool)
        owner = {"end_waiting": book, "publish": publisher, "acknowledge_outcomes": services}[step]
        kill(owner, step, after=after)
        with pytest.raises(KilledError):
            await follower(rig, services, publisher, book=book).follow()
    if step == "publish":
        del publisher.publish
    async with rig.services.worker():
        for each in ids[:3]:
            await rig.until(each, "CONFIRMED")
    assert await rig.services.states(list(map(uuid.UUID, ids))) == {"CONFIRMED": 3, "WAITLISTED": 2, "CANCELLED": 1}
    assert await untold(rig) == 0


async def test_what_the_broker_does_not_take_is_queued_by_the_sweeper(rig: LifeRig) -> None:
    class Away:
        async def publish(self, partition: int, ids: Sequence[uuid.UUID]) -> None:
            raise DomainError(_R.ERROR_REASON_UNAVAILABLE)

    first, (ann,) = await line_of(rig, ["ann"])
    # Long in line: its age counts from its promotion.
    await rig.services.sql("UPDATE purchases SET create_time = now() - interval '1 hour' WHERE waitlisted")
    await rig.cancel(first)
    async with rig.services.services() as services:
        assert await follower(rig, services, Away()).follow()
    assert await untold(rig) == 0
    sweep = SweepBook(rig.services.pool)
    assert await sweep.list_unqueued(age_s=60, limit=10) == []
    async with rig.services.worker():
        await rig.until(ann, "CONFIRMED")
    await rig.services.audit()


async def test_followers_at_once_take_everything_in_once(rig: LifeRig) -> None:
    users = [f"user{n}" for n in range(120)]
    first, ids = await line_of(rig, users, total=80)
    keys = list(map(uuid.UUID, ids))
    await rig.cancel(first)
    async with rig.services.services() as services:
        followers = [follower(rig, services) for _ in range(5)]
        await asyncio.gather(*(each.follow() for each in followers))
        while await followers[0].follow():
            pass
    assert await rig.services.states(keys) == {"RESERVED": 80, "WAITLISTED": 40}
    assert await untold(rig) == 0
    async with rig.services.worker(), rig.services.worker():
        assert await rig.finished(ids[:80], within_s=40) == {"CONFIRMED": 80}
        await rig.close_sale()
        assert await rig.finished(ids) == {"CONFIRMED": 80, SALE_CLOSED: 40}
    await rig.services.audit()


async def test_with_more_demand_than_stock_exactly_the_total_is_sold_and_in_the_order_of_the_line(
    servers: Servers,
) -> None:
    async with life_rig(servers) as rig, serving(rig.services) as other:
        await rig.services.new_sale(40)
        rich, poor = [f"rich{n}" for n in range(100)], [f"poor{n}" for n in range(100)]
        await rig.services.fund(rich)
        await rig.services.fund(poor, 1)
        users = [each for pair in zip(poor, rich, strict=True) for each in pair]
        async with rig.services.worker(), rig.services.worker():
            some = await rig.buy_all(users[:100], waitlist=True)
            rig.purchases = other
            ids = [each.purchase_id for each in some + await rig.buy_all(users[100:], waitlist=True)]

            async def all_sold() -> bool:
                return await rig.services.stock() == (0, 0, 40)

            await eventually(all_sold, within_s=40)
            await rig.close_sale()
            states = await rig.finished(ids, within_s=40)
        assert states["CONFIRMED"] == 40
        assert set(states) == {"CONFIRMED", NO_FUNDS, SALE_CLOSED}
        served = [name_of((await rig.get(each)).state) == "CONFIRMED" for each in ids[1::2]]
        assert served == [True] * 40 + [False] * 60
        await rig.services.audit()
        statement = await rig.statement()
        assert (statement.final, statement.sold_units, statement.captured.amount_minor) == (True, 40, 40 * PRICE)


async def test_a_batch_serves_those_with_units_and_lines_up_the_others_in_order(rig: LifeRig) -> None:
    await rig.services.new_sale(3)
    users = [f"user{n}" for n in range(70)]
    outcomes = await rig.buy_all(users, waitlist=True)
    assert [name_of(each.state) for each in outcomes] == ["RESERVED"] * 3 + ["WAITLISTED"] * 67
    assert [each.waitlist_position for each in outcomes] == [0] * 3 + list(range(1, 68))
    rows = await rig.services.sql(
        "SELECT state, count(*), bool_or(batch_id = 0), bool_and(batch_id = 0) FROM purchases GROUP BY state"
    )
    assert set(rows) == {("RESERVED", 3, False, False), ("WAITLISTED", 67, True, True)}
    again = await rig.buy_all(users)
    assert [(each.state, each.waitlist_position) for each in again] == [
        (each.state, each.waitlist_position) for each in outcomes
    ]


async def test_of_two_alike_in_one_batch_one_who_would_wait_is_enough(rig: LifeRig) -> None:
    await rig.services.new_sale(1)
    await rig.buy("bob")
    requests = [
        pb.CreatePurchaseRequest(request_id="r1", user_id=user, sale_id=rig.sale_id, quantity=1, waitlist=waitlist)
        for user, waitlist in (("ann", False), ("cid", True), ("ann", True), ("ann", False))
    ]
    answer = await rig.purchases.BatchCreatePurchases(pb.BatchCreatePurchasesRequest(requests=requests))
    assert [name_of(each.state) for each in answer.outcomes] == ["WAITLISTED"] * 4
    assert [each.waitlist_position for each in answer.outcomes] == [1, 2, 1, 1]
