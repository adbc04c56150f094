"""Buying while a server it needs is away: nobody is told a falsehood, and nothing that was promised is lost."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import grpc
import psycopg
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from psycopg import sql

from mesh.identity import partition_of
from purchase_svc import settlement_queue
from tests.support.purchase_rig import PurchaseRig, purchase_rig, wish
from tests.support.servers import Servers
from tests.support.waiting import eventually

_R = ErrorReason


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rig(servers: Servers) -> AsyncIterator[PurchaseRig]:
    async with purchase_rig(servers) as running:
        yield running


@asynccontextmanager
async def database_away(servers: Servers, rig: PurchaseRig) -> AsyncIterator[None]:
    """Throws everybody out of the purchase database and lets nobody in; all other databases go on."""
    name = rig.settings.database_url.rpartition("/")[2]

    async def allow(allowed: bool) -> None:
        async with await psycopg.AsyncConnection.connect(servers.postgres_admin_url, autocommit=True) as conn:
            statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            await conn.execute(statement.format(sql.Identifier(name), sql.Literal(allowed)))
            if not allowed:
                await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    await allow(False)
    try:
        yield
    finally:
        await allow(True)


@asynccontextmanager
async def table_locked(rig: PurchaseRig) -> AsyncIterator[None]:
    """Lets every INSERT wait."""
    async with (
        await psycopg.AsyncConnection.connect(rig.settings.database_url) as conn,
        conn.transaction(force_rollback=True),
    ):
        await conn.execute("LOCK TABLE purchases IN EXCLUSIVE MODE")
        yield


async def batch(rig: PurchaseRig, requests: list[pb.CreatePurchaseRequest]) -> list[pb.CreatePurchaseOutcome]:
    response = await rig.purchases.BatchCreatePurchases(pb.BatchCreatePurchasesRequest(requests=requests), timeout=10)
    return list(response.outcomes)


async def unqueued(rig: PurchaseRig, sale: str) -> int:
    query = """SELECT count(*) FROM purchases LEFT JOIN queued_batches USING (batch_id)
               WHERE sale_id = %s AND coalesce(purchases.queue_time, queued_batches.queue_time) IS NULL"""
    count: int = (await rig.sql(query, uuid.UUID(sale)))[0][0]
    return count


async def test_every_purchase_is_queued_once_in_its_users_partition(servers: Servers, rig: PurchaseRig) -> None:
    async with await aio_pika.connect(servers.amqp_url) as connection, await connection.channel() as channel:
        await settlement_queue.declare(channel)
        found: Counter[tuple[int, uuid.UUID]] = Counter()
        largest = 0
        sale = await rig.new_sale(total=2000)

        async def note(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal largest
            parsed = settlement_queue.decode(message.body)
            assert message.routing_key == settlement_queue.partition_key(parsed.partition)
            largest = max(largest, len(parsed.purchase_ids))
            found.update((parsed.partition, each) for each in parsed.purchase_ids)
            await message.ack()

        for partition in range(settlement_queue.PARTITIONS):
            queue = await channel.get_queue(settlement_queue.queue_name(partition))
            await queue.purge()
            await queue.consume(note)
        requests = [wish(sale, f"user-{number}") for number in range(2000)]
        await asyncio.gather(*(batch(rig, requests[start : start + 250]) for start in range(0, 2000, 250)))

        async def all_found() -> bool:
            return len(found) >= 2000 and await unqueued(rig, sale) == 0

        await eventually(all_found)
        rows = await rig.sql(
            "SELECT partition, purchase_id, user_id FROM purchases WHERE sale_id = %s", uuid.UUID(sale)
        )
        assert found == Counter((partition, purchase_id) for partition, purchase_id, _ in rows)
        assert all(partition == partition_of(user, 16) for partition, _, user in rows)
        assert largest > 5, "purchases must travel in batches"


async def test_while_the_broker_is_away_buying_goes_on_and_nothing_counts_as_queued(
    servers: Servers, rig: PurchaseRig
) -> None:
    sale = await rig.new_sale(total=2000)
    await asyncio.to_thread(servers.stop, "rabbitmq")
    try:
        began = time.monotonic()
        outcomes = await batch(rig, [wish(sale, f"user-{number}") for number in range(500)])
        purchase = await rig.buy(sale)
        assert time.monotonic() - began < 1.5, "buyers must not wait for the broker"
        assert {(outcome.reason, outcome.state) for outcome in outcomes} == {(0, pb.PURCHASE_STATE_RESERVED)}
        assert purchase.state == pb.PURCHASE_STATE_RESERVED

        async def given_up() -> bool:
            return rig.running.writer.waiting == 0

        await eventually(given_up)
        assert await unqueued(rig, sale) == 501
        summary = await rig.purchases.SummarizeSale(pb.SummarizeSaleRequest(sale_id=sale), timeout=10)
        assert (summary.queued_messages, summary.dead_letters) == (-1, -1)
    finally:
        await asyncio.to_thread(servers.start, "rabbitmq")

    fresh = await rig.new_sale(total=1000)

    async def queued_again() -> bool:
        await rig.buy(fresh, uuid.uuid4().hex)
        query = (
            "SELECT count(b.queue_time) FROM purchases LEFT JOIN queued_batches b USING (batch_id) WHERE sale_id = %s"
        )
        queued: int = (await rig.sql(query, uuid.UUID(fresh)))[0][0]
        return queued > 0

    await eventually(queued_again, within_s=30)
    assert await unqueued(rig, sale) == 501, "what was missed is the sweeper's"


async def test_while_the_database_is_away_nobody_is_told_they_won_or_lost(servers: Servers, rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1)
    requests = [wish(sale, f"user-{number}") for number in range(3)]
    async with database_away(servers, rig):
        outcomes = await batch(rig, requests)
        assert {outcome.reason for outcome in outcomes} == {_R.ERROR_REASON_UNAVAILABLE}
        assert all(outcome.retry_after_ms > 0 for outcome in outcomes)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.buy(sale)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE

    async def answered() -> bool:
        return {each.reason for each in await batch(rig, requests)} == {0, _R.ERROR_REASON_SOLD_OUT}

    await eventually(answered)
    again = await batch(rig, requests)
    assert Counter(outcome.reason for outcome in again) == {0: 1, _R.ERROR_REASON_SOLD_OUT: 2}
    assert await rig.stock(sale) == (0, 1, 0)


@pytest.mark.parametrize("others", [0, 200])
async def test_a_call_that_runs_out_of_time_may_be_repeated_and_is_one_purchase(rig: PurchaseRig, others: int) -> None:
    sale = await rig.new_sale(total=1000)
    requests = [wish(sale, f"user-{number}") for number in range(1 + others)]
    call = pb.BatchCreatePurchasesRequest(requests=requests)
    async with table_locked(rig):
        try:
            response = await rig.purchases.BatchCreatePurchases(call, timeout=0.5)
            assert {outcome.reason for outcome in response.outcomes} == {_R.ERROR_REASON_UNAVAILABLE}
            assert all(outcome.retry_after_ms > 0 for outcome in response.outcomes)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017 (either answer is right)
    outcomes = await batch(rig, requests)
    assert {(each.reason, each.state) for each in outcomes} == {(0, pb.PURCHASE_STATE_RESERVED)}
    assert await rig.stock(sale) == (999 - others, 1 + others, 0)
    assert await rig.sql("SELECT count(*) FROM purchases WHERE sale_id = %s", uuid.UUID(sale)) == [(1 + others,)]


async def test_what_was_begun_is_completed_though_the_buyer_has_gone(rig: PurchaseRig) -> None:
    sale = await rig.new_sale(total=1000)
    requests = pb.BatchCreatePurchasesRequest(requests=[wish(sale, f"user-{number}") for number in range(200)])
    async with table_locked(rig):
        call = rig.purchases.BatchCreatePurchases(requests, timeout=10)

        async def reserved() -> bool:
            return (await rig.stock(sale))[1] == 200

        await eventually(reserved)
        call.cancel()

    async def recorded() -> bool:
        return await rig.sql("SELECT count(*) FROM purchases WHERE sale_id = %s", uuid.UUID(sale)) == [(200,)]

    await eventually(recorded)


async def test_beyond_its_bound_buyers_are_shed_and_told_when_to_return(servers: Servers) -> None:
    async with purchase_rig(servers, waiting_max=300) as small:
        sale = await small.new_sale(total=1000)
        async with table_locked(small):
            first = asyncio.ensure_future(batch(small, [wish(sale, f"user-{number}") for number in range(250)]))

            async def reserved() -> bool:
                return (await small.stock(sale))[1] == 250

            await eventually(reserved)
            shed = await batch(small, [wish(sale, f"later-{number}") for number in range(100)])
            assert {outcome.reason for outcome in shed} == {_R.ERROR_REASON_OVERLOADED}
            assert all(outcome.retry_after_ms > 0 for outcome in shed)
        assert {outcome.reason for outcome in await first} == {0}
        assert {outcome.reason for outcome in await batch(small, [wish(sale, "later-1")])} == {0}


async def test_callers_who_give_up_make_no_room_for_more(servers: Servers) -> None:
    async with purchase_rig(servers, waiting_max=300) as small:
        sale = await small.new_sale(total=1000)
        requests = pb.BatchCreatePurchasesRequest(requests=[wish(sale, f"user-{number}") for number in range(250)])
        async with table_locked(small):
            call = small.purchases.BatchCreatePurchases(requests, timeout=10)

            async def reserved() -> bool:
                return (await small.stock(sale))[1] == 250

            await eventually(reserved)
            call.cancel()
            shed = await batch(small, [wish(sale, f"later-{number}") for number in range(100)])
            assert {outcome.reason for outcome in shed} == {_R.ERROR_REASON_OVERLOADED}


async def test_an_unreachable_inventory_is_told_as_unavailable_and_winners_still_get_their_purchase(
    servers: Servers, rig: PurchaseRig
) -> None:
    sale = await rig.new_sale()
    mine = await rig.buy(sale)
    async with purchase_rig(
        servers, database_url=rig.settings.database_url, inventory_target="127.0.0.1:1", buy_timeout_ms=500
    ) as cut_off:
        outcomes = await batch(cut_off, [wish(sale), wish(sale, "bob"), wish(sale, quantity=2)])
        assert (outcomes[0].reason, outcomes[0].purchase_id) == (0, mine.purchase_id)
        assert [each.reason for each in outcomes[1:]] == [
            _R.ERROR_REASON_UNAVAILABLE,
            _R.ERROR_REASON_REQUEST_ID_REUSED,
        ]
        cancel = pb.CancelPurchaseRequest(purchase_id=mine.purchase_id)
        assert (await cut_off.purchases.CancelPurchase(cancel)).purchase.state == pb.PURCHASE_STATE_CANCELLED
    query = "SELECT state, cleanup_pending FROM purchases WHERE purchase_id = %s"
    assert await rig.sql(query, uuid.UUID(mine.purchase_id)) == [("CANCELLED", True)]
    assert await rig.stock(sale) == (99, 1, 0)
    await rig.purchases.CancelPurchase(cancel)
    assert await rig.sql(query, uuid.UUID(mine.purchase_id)) == [("CANCELLED", False)]
    assert await rig.stock(sale) == (100, 0, 0)


async def test_what_was_bought_last_is_queued_before_the_process_ends(servers: Servers) -> None:
    async with purchase_rig(servers) as ending:
        sale = await ending.new_sale(total=1000)
        await asyncio.gather(*(ending.buy(sale, f"user-{number}") for number in range(100)))
    assert await unqueued(ending, sale) == 0
