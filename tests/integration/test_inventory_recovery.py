"""Inventory when servers fail: whatever they forget or refuse, nothing is oversold and Redis equals SQL again."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from redis.asyncio import Redis

from inventory_svc.reaper import Reaper
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale import Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import StockGate, gate_key
from inventory_svc.waitlist_book import WaitlistBook
from mesh.errors import DomainError, from_rpc_error
from mesh.postgres import open_pool
from mesh.redis_pool import open_redis
from tests.support.inventory_rig import AGAIN, OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.servers import Servers
from tests.support.waiting import eventually

RELEASED = ErrorReason.ERROR_REASON_RESERVATION_RELEASED


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers, reaper_period_ms=200, grant_age_max_ms=1_000) as opened:
        yield opened


@dataclass
class Insides:
    """The service's parts on the same servers, to do half of what a call does, as a process does that dies in it."""

    redis: "Redis"
    gate: StockGate
    sales: SaleBook
    book: ReservationBook
    waitlist: WaitlistBook


@pytest_asyncio.fixture(scope="module")
async def insides(rig: InventoryRig) -> AsyncIterator[Insides]:
    async with (
        open_pool(rig.settings.database_url, name="test", size=2) as pool,
        open_redis(rig.settings.redis_url) as redis,
    ):
        yield Insides(redis, StockGate(redis), SaleBook(pool), ReservationBook(pool), WaitlistBook(pool))


def wish_of(one: pb.ReserveItem) -> Wish:
    return Wish(one.reservation_id, one.sale_id, one.user_id, one.request_id, one.quantity)


async def agrees(rig: InventoryRig, sale_id: str) -> tuple[int, int, int]:
    """When nothing is in flight, Redis equals SQL; what both say."""

    async def equal() -> bool:
        try:
            return await rig.stock(sale_id) == await rig.stock(sale_id, book=True)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return False

    await eventually(equal, within_s=30)
    return await rig.stock(sale_id, book=True)


def truncate_log(servers: Servers, octets: int) -> None:
    """Restarts Redis as after a crash of the machine: the end of its log never reached the disk."""
    servers.stop("redis")
    logs = sorted((servers.redis_dir / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
    with logs[-1].open("r+b") as log:
        size = log.seek(0, 2)
        log.truncate(max(0, size - octets))
    servers.start("redis")


def flush(servers: Servers) -> None:
    import redis

    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()


LOSSES: dict[str, Callable[[Servers], object]] = {
    "restart": lambda servers: servers.restart("redis"),
    "kill": lambda servers: servers.kill("redis"),
    "flush": flush,
    "lost log": lambda servers: truncate_log(servers, 20_000),
}


@pytest.mark.parametrize("loss", list(LOSSES))
async def test_what_redis_loses_in_the_middle_of_reserving_is_neither_oversold_nor_lost(
    servers: Servers, rig: InventoryRig, loss: str
) -> None:
    total = 3_000
    sale_id = await rig.open_sale(total)

    async def buy(first: int) -> list[int]:
        reasons: list[int] = []
        for start in range(first, 4_000, 400):
            wishes = [item(sale_id, f"u{number}") for number in range(start, start + 50)]
            reasons += await rig.reserve_until_decided(wishes)
        return reasons

    async def lose() -> None:
        async def under_way() -> bool:
            return (await rig.stock(sale_id, book=True))[1] >= 500

        await eventually(under_way)
        await asyncio.to_thread(LOSSES[loss], servers)

    losing = asyncio.create_task(lose())
    answers = await asyncio.gather(*(buy(first) for first in range(0, 400, 50)))
    await losing
    assert Counter(reason for part in answers for reason in part) == {OK: total, SOLD_OUT: 1_000}
    assert await agrees(rig, sale_id) == (0, total, 0)


@pytest.mark.parametrize("loss", list(LOSSES))
async def test_releases_and_sales_while_redis_is_away_are_followed_when_it_is_back(
    servers: Servers, rig: InventoryRig, loss: str
) -> None:
    sale_id = await rig.open_sale(40)
    wishes = [item(sale_id, f"u{number}") for number in range(40)]
    assert await rig.reserve(wishes) == [OK] * 40
    ids = [wish.reservation_id for wish in wishes]
    losing = asyncio.create_task(asyncio.to_thread(LOSSES[loss], servers))
    assert [reason for reason, _ in await rig.confirm(ids[:20])] == [OK] * 20
    assert await rig.release(ids[10:30], revoke_sold=True) == [OK] * 20
    await losing
    assert await agrees(rig, sale_id) == (20, 10, 10)
    assert await rig.reserve_until_decided(wishes) == [OK] * 10 + [RELEASED] * 20 + [OK] * 10
    assert await agrees(rig, sale_id) == (20, 10, 10)


async def test_the_state_of_a_sale_changes_while_redis_is_away_and_the_gate_follows(
    servers: Servers, rig: InventoryRig
) -> None:
    sale_id = await rig.open_sale(5)
    await asyncio.to_thread(servers.stop, "redis")
    try:
        paused = await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id), timeout=10)
        assert paused.sale.state == pb.SaleState.SALE_STATE_PAUSED
        other = await rig.create_sale(7)
        assert (await rig.inventory.OpenSale(pb.OpenSaleRequest(sale_id=other.sale_id))).sale.state == 2
        assert await rig.reserve([item(sale_id, "a")]) == [ErrorReason.ERROR_REASON_UNAVAILABLE]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.stock(sale_id)
        assert from_rpc_error(caught.value).reason_name == "UNAVAILABLE"
        assert from_rpc_error(caught.value).retry_after_ms > 0
        assert await rig.stock(sale_id, book=True) == (5, 0, 0)
    finally:
        await asyncio.to_thread(servers.start, "redis")
    assert await rig.reserve_until_decided([item(sale_id, "a")]) == [ErrorReason.ERROR_REASON_SALE_NOT_OPEN]
    assert await rig.reserve_until_decided([item(other.sale_id, "a")]) == [OK]


async def test_a_stream_says_that_the_gate_is_away_and_that_it_is_back(servers: Servers, rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    call = rig.inventory.WatchStock(pb.WatchStockRequest(sale_id=sale_id, include_fingerprints=True))
    assert await rig.reserve([item(sale_id, "a")]) == [OK]

    async def said(has_stock: bool, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while (await asyncio.wait_for(call.read(), 1)).HasField("stock") != has_stock:
            assert time.monotonic() < deadline

    await said(True, 2)
    await asyncio.to_thread(servers.stop, "redis")
    try:
        await said(False, 2)
    finally:
        await asyncio.to_thread(servers.start, "redis")
    await said(True, 10)
    call.cancel()


async def test_a_closed_sale_without_a_gate_still_says_that_it_is_closed(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(5)
    await rig.inventory.CloseSale(pb.CloseSaleRequest(sale_id=sale_id))
    await insides.redis.delete(gate_key(sale_id))
    assert await rig.reserve_until_decided([item(sale_id, "a")]) == [ErrorReason.ERROR_REASON_SALE_NOT_OPEN]
    assert await agrees(rig, sale_id) == (5, 0, 0)


@pytest.mark.parametrize("name", ["gate", "grants", "users"])
async def test_a_lost_key_closes_the_gate_until_it_is_rebuilt(rig: InventoryRig, insides: Insides, name: str) -> None:
    sale_id = await rig.open_sale(2, per_user=1)
    assert await rig.reserve([item(sale_id, "a")]) == [OK]
    epoch = (await insides.gate.read(sale_id)).epoch
    await insides.redis.delete(gate_key(sale_id) if name == "gate" else f"inventory:{{{sale_id}}}:{name}:{epoch}")
    with pytest.raises(DomainError, match="recalibrating"):
        await insides.gate.reserve(sale_id, [wish_of(item(sale_id, "b"))])
    again = [item(sale_id, "a"), item(sale_id, "a", "r2"), item(sale_id, "b"), item(sale_id, "c")]
    assert await rig.reserve_until_decided(again) == [OK, ErrorReason.ERROR_REASON_USER_LIMIT_REACHED, OK, SOLD_OUT]
    assert await agrees(rig, sale_id) == (0, 2, 0)


async def begin_and_die(rig: InventoryRig, sale_id: str, lease_s: float = 1.0) -> int:
    """Does what a recalibrator does before it counts, and no more; the epoch."""
    rows = await rig.sql(
        "WITH lease AS (UPDATE calibration_leases SET expire_time = clock_timestamp() + %s * interval '1 second'"
        " WHERE sale_id = %s) UPDATE sale_epochs SET epoch = epoch + 1 WHERE sale_id = %s RETURNING epoch",
        lease_s,
        sale_id,
        sale_id,
    )
    return int(rows[0][0])


async def test_an_insert_of_an_older_epoch_is_refused(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(1)
    wish = wish_of(item(sale_id, "late"))
    granted = await insides.gate.reserve(sale_id, [wish])
    await rig.recalibrate(sale_id)
    assert await rig.reserve([item(sale_id, "other")]) == [OK]
    assert await insides.book.insert(sale_id, granted.epoch, [wish]) is None
    assert await agrees(rig, sale_id) == (0, 1, 0)


async def test_an_insert_waits_for_the_fence_and_then_sees_it(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(1)
    wish = wish_of(item(sale_id, "racing"))
    granted = await insides.gate.reserve(sale_id, [wish])
    async with open_pool(rig.settings.database_url, name="bump", size=1) as pool, pool.connection() as conn:
        async with conn.transaction():
            await conn.execute("UPDATE sale_epochs SET epoch = epoch + 1 WHERE sale_id = %s", (sale_id,))
            inserting = asyncio.create_task(insides.book.insert(sale_id, granted.epoch, [wish]))

            async def waits() -> bool:
                found = await rig.sql(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                return bool(found[0][0])

            await eventually(waits)
            counted = await conn.execute("SELECT count(*) FROM reservations WHERE sale_id = %s", (sale_id,))
            assert await counted.fetchone() == (0,)
        assert await inserting is None
    assert await agrees(rig, sale_id) == (1, 0, 0)


async def test_a_grant_whose_row_never_came_is_ended_and_given_back(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(3)
    lost = item(sale_id, "lost", quantity=2)
    await insides.gate.reserve(sale_id, [wish_of(lost)])
    assert await rig.stock(sale_id) == (1, 2, 0)
    assert await agrees(rig, sale_id) == (3, 0, 0)
    assert await rig.sql("SELECT state FROM reservations WHERE reservation_id = %s", lost.reservation_id) == [
        ("RELEASED",)
    ]
    assert await rig.reserve([lost]) == [RELEASED]
    assert await rig.confirm([lost.reservation_id]) == [(RELEASED, [])]
    assert await rig.reserve([item(sale_id, "lost", "r2", 3)]) == [OK]


async def test_a_grant_is_not_given_back_before_its_time_nor_when_its_row_is_there(
    rig: InventoryRig, insides: Insides
) -> None:
    sale_id = await rig.open_sale(3)
    young, proved = wish_of(item(sale_id, "young")), wish_of(item(sale_id, "proved"))
    granted = await insides.gate.reserve(sale_id, [young, proved])
    reaper = Reaper(
        insides.gate, insides.sales, insides.book, insides.waitlist, grant_age_max_ms=600_000, changed=lambda *_: None
    )
    assert await reaper.reap(sale_id) == 0
    assert await insides.book.insert(sale_id, granted.epoch, [young, proved]) is not None
    reaper = Reaper(
        insides.gate, insides.sales, insides.book, insides.waitlist, grant_age_max_ms=0, changed=lambda *_: None
    )
    assert await reaper.reap(sale_id) in (0, 2)  # The service's own reaper may have been first.
    assert await reaper.reap(sale_id) == 0
    assert await agrees(rig, sale_id) == (1, 2, 0)


async def test_a_repetition_makes_a_lost_grant_durable(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(1)
    wish = item(sale_id, "persistent")
    await insides.gate.reserve(sale_id, [wish_of(wish)])
    assert await rig.reserve([wish]) == [OK]
    assert await rig.sql("SELECT state FROM reservations WHERE reservation_id = %s", wish.reservation_id) == [
        ("RESERVED",)
    ]
    assert await agrees(rig, sale_id) == (0, 1, 0)


async def test_an_insert_that_comes_after_its_tombstone_gets_nothing(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(1)
    wish = wish_of(item(sale_id, "slow"))
    granted = await insides.gate.reserve(sale_id, [wish])
    await insides.book.bury(sale_id, granted.epoch, [wish])
    assert await insides.book.insert(sale_id, granted.epoch, [wish]) == {wish.reservation_id: RELEASED}
    assert await agrees(rig, sale_id) == (1, 0, 0)


async def test_while_sql_is_away_nothing_is_promised_and_afterwards_nothing_is_lost(
    servers: Servers, rig: InventoryRig
) -> None:
    sale_id = await rig.open_sale(10)
    wishes = [item(sale_id, f"u{number}") for number in range(6)]
    assert await rig.reserve(wishes[:2]) == [OK, OK]
    await asyncio.to_thread(servers.stop, "postgres")
    try:
        assert set(await rig.reserve(wishes)) == {ErrorReason.ERROR_REASON_UNAVAILABLE}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.confirm([wishes[0].reservation_id])
        assert from_rpc_error(caught.value).reason_name == "UNAVAILABLE"
    finally:
        await asyncio.to_thread(servers.start, "postgres")
    # Given back by the reaper, which spends the ids of those whose rows never came.
    assert await agrees(rig, sale_id) == (8, 2, 0)
    assert await rig.reserve_until_decided(wishes) == [OK, OK] + [RELEASED] * 4
    fresh = [item(sale_id, f"v{number}") for number in range(9)]
    assert await rig.reserve_until_decided(fresh) == [OK] * 8 + [SOLD_OUT]


async def test_a_recalibrators_death_never_leaves_a_sale_stuck(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(5)
    assert await rig.reserve([item(sale_id, "a")]) == [OK]
    await begin_and_die(rig, sale_id)
    await insides.gate.close(sale_id)
    assert await rig.reserve([item(sale_id, "b")]) == [AGAIN[1]]
    assert await agrees(rig, sale_id) == (4, 1, 0)


async def test_a_release_committed_after_the_count_reaches_the_new_gate(rig: InventoryRig, insides: Insides) -> None:
    sale_id = await rig.open_sale(5)
    wish = item(sale_id, "a")
    assert await rig.reserve([wish]) == [OK]
    # Another process has counted this reservation and not yet switched; it is dead only when the test says so.
    epoch = await begin_and_die(rig, sale_id, lease_s=60.0)
    reasons, moves = await insides.book.release([wish.reservation_id], revoke_sold=False)
    assert reasons == {wish.reservation_id: OK}
    assert await insides.sales.epochs([sale_id]) == {sale_id: epoch}
    with pytest.raises(DomainError, match="recalibrating"):
        await insides.gate.move(sale_id, sold=False, epoch_min=epoch, reservation_ids=moves[0].reservation_ids)
    await rig.sql("UPDATE calibration_leases SET expire_time = '-infinity' WHERE sale_id = %s", sale_id)
    assert await agrees(rig, sale_id) == (5, 0, 0)

    async def forgotten() -> bool:
        return await rig.sql("SELECT count(*) FROM gate_moves WHERE sale_id = %s", sale_id) == [(0,)]

    await eventually(forgotten)


async def test_a_sale_that_holds_more_than_its_total_in_sql_sells_nothing(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(2)
    await rig.sql(
        "INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)"
        " VALUES (gen_random_uuid(), %s, 'a', 'r', 3, 'RESERVED', 1)",
        sale_id,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.recalibrate(sale_id)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert await rig.reserve([item(sale_id, "b")]) == [ErrorReason.ERROR_REASON_STOCK_RECALIBRATING]
    await rig.sql("DELETE FROM reservations WHERE sale_id = %s", sale_id)
