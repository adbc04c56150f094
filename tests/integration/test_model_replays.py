"""The sequences by which the model breaks when a rule is left out, played to the real code and the real servers.

Each test is named after what ``model/check.py`` leaves out, and follows the shortest failing sequence it prints, step
by step: a step that must wait is held at a ``Stop``, or at a lock that the test holds itself. The real system must come
through with the promises kept, recounted here from SQL and Redis.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from redis.asyncio import Redis

from inventory_svc import recalibration, reservation_book
from inventory_svc.eligibility import Eligibility
from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.lifecycle import Lifecycle
from inventory_svc.reaper import Reaper
from inventory_svc.recalibration import RecalibrationMetrics, Recalibrator
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.reserving import Reserving
from inventory_svc.sale import Wish
from inventory_svc.sale_book import SQL, SaleBook
from inventory_svc.servicer import InventoryServicer
from inventory_svc.stock_gate import StockGate, gate_key
from inventory_svc.stock_watch import StockWatch
from inventory_svc.waitlist_book import WaitlistBook
from mesh.errors import DomainError
from mesh.identity import purchase_id
from mesh.metrics import Metrics
from mesh.postgres import Pool, open_pool
from mesh.redis_pool import open_redis
from purchase_svc.purchase import PurchaseState
from purchase_svc.settlement import Settled, Settlement
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_rules import Claimed
from purchase_svc.settlement_services import SettlementServices
from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, settlement_rig
from tests.support.waiting import eventually

#: Each waits for locks and expiries that it makes happen itself.
pytestmark = pytest.mark.slow

_R = ErrorReason
OK = int(_R.ERROR_REASON_UNSPECIFIED)
SOLD_OUT = int(_R.ERROR_REASON_SOLD_OUT)
SPENT = int(_R.ERROR_REASON_RESERVATION_RELEASED)
AGAIN = int(_R.ERROR_REASON_STOCK_RECALIBRATING)
AWAY = int(_R.ERROR_REASON_UNAVAILABLE)
NO_FUNDS = f"FAILED {_R.ERROR_REASON_INSUFFICIENT_FUNDS}"


_WAITING = "wait_event_type = 'Lock' AND datname = current_database()"


class Stop:
    """Holds whoever comes first at a step until the test lets it go on; later comers pass."""

    def __init__(self) -> None:
        self._come = asyncio.Event()
        self._go_on = asyncio.Event()

    async def hold(self) -> None:
        """Waits here, the first time."""
        if not self._come.is_set():
            self._come.set()
            await self._go_on.wait()

    async def reached(self) -> None:
        """Returns when somebody waits here."""
        async with asyncio.timeout(20):
            await self._come.wait()

    def go_on(self) -> None:
        """Lets it pass."""
        self._go_on.set()


def stop_at(owner: Any, method: str, *, after: bool = False) -> Stop:
    """A stop before, or after, what the owner's method does."""
    stop = Stop()
    work: Callable[..., Awaitable[Any]] = getattr(owner, method)

    async def stopping(*args: Any, **options: Any) -> Any:
        if after:
            result = await work(*args, **options)
            await stop.hold()
            return result
        await stop.hold()
        return await work(*args, **options)

    setattr(owner, method, stopping)
    return stop


# The stock: gate.pml.


class Process:
    """The parts of one inventory process, without its background work: nothing happens but what the test does."""

    def __init__(self, redis: "Redis", pool: Pool) -> None:
        def told(*_: object) -> None:
            pass

        self.gate, self.sales, self.book = StockGate(redis), SaleBook(pool), ReservationBook(pool)
        self.waitlist = WaitlistBook(pool)
        counts = RecalibrationMetrics(Metrics())
        self.recalibrator = Recalibrator(self.gate, self.sales, pool, lease_ms=5_000, in_service=told, metrics=counts)
        self.moves = GateMoves(self.gate, self.sales, self.book, changed=told, stale=told)
        proofs = GrantProofs(self.gate)
        eligibility = Eligibility(pool)
        self.reserving = Reserving(
            self.gate, self.sales, self.book, self.waitlist, proofs, eligibility, changed=told, joined=told, stale=told
        )
        self.reaper = Reaper(self.gate, self.sales, self.book, self.waitlist, grant_age_max_ms=0, changed=told)
        self.service = InventoryServicer(
            gate=self.gate,
            sales=self.sales,
            book=self.book,
            waitlist=self.waitlist,
            reserving=self.reserving,
            moves=self.moves,
            recalibrator=self.recalibrator,
            watch=StockWatch(self.gate, watchers_max=1, stale=told),
            lifecycle=Lifecycle(self.sales, self.recalibrator),
            eligibility=eligibility,
            rescheduled=told,
        )

    async def reserve(self, wish: Wish) -> int:
        """A call of BatchReserveShares with one wish; its reason."""
        return (await self.reserving.reserve([wish])).reasons[0]

    async def release(self, wish: Wish) -> int:
        """A call of BatchReleaseReservations with one id; its reason."""
        request = pb.BatchReleaseReservationsRequest(reservation_ids=[wish.reservation_id], revoke_sold=True)
        return (await self.service.BatchReleaseReservations(request, None)).outcomes[0].reason

    async def confirm(self, wish: Wish) -> list[int]:
        """A call of BatchConfirmReservations with one id; its share numbers."""
        request = pb.BatchConfirmReservationsRequest(reservation_ids=[wish.reservation_id])
        return list((await self.service.BatchConfirmReservations(request, None)).outcomes[0].share_numbers)


@dataclass
class Stock:
    """Two processes of the Inventory Service on one Redis and one database, and a sale of one share."""

    servers: Servers
    url: str
    redis: "Redis"
    one: Process
    other: Process
    sale_id: str = ""

    def wish(self, user: str) -> Wish:
        """One unit for a user, always by the same request."""
        return Wish(str(purchase_id(user, self.sale_id, "r1")), self.sale_id, user, "r1", 1)

    @property
    def ann(self) -> Wish:
        """Ann's wish."""
        return self.wish("Ann")

    @property
    def bob(self) -> Wish:
        """Bob's wish."""
        return self.wish("Bob")

    async def new_sale(self) -> None:
        """Opens a sale of one share."""
        request = pb.CreateSaleRequest(
            request_id=uuid.uuid4().hex,
            display_name="Fund",
            unit_price=Money(amount_minor=1_000, currency_code="EUR"),
            total=1,
        )
        self.sale_id = (await self.one.service.CreateSale(request, None)).sale.sale_id
        await self.one.service.OpenSale(pb.OpenSaleRequest(sale_id=self.sale_id), None)

    async def sql(self, query: str, *parameters: object) -> list[Any]:
        """Runs a statement; its rows."""
        async with self.transaction() as conn:
            cursor = await conn.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection of the test's own; its transaction ends with the block, or by ``commit`` or ``rollback``."""
        async with await psycopg.AsyncConnection.connect(self.url) as conn:
            yield conn

    @asynccontextmanager
    async def open_insert(self, wish: Wish) -> AsyncIterator[Any]:
        """Takes a unit and writes its row as the service does; the transaction is open until the caller commits it."""
        granted = await self.one.gate.reserve(self.sale_id, [wish])
        assert granted.reasons == (OK,)
        parameters = {
            "sale_id": self.sale_id,
            "epoch": granted.epoch,
            "ids": [wish.reservation_id],
            "users": [wish.user_id],
            "requests": [wish.request_id],
            "quantities": [wish.quantity],
        }
        async with self.transaction() as conn:
            assert await (await conn.execute(SQL.insert_reservations, parameters)).fetchone() == (1, 1)
            yield conn

    async def waits_for_lock(self, work: "asyncio.Task[Any]") -> None:
        """Returns when a statement waits for a lock, or when the work that should wait for it is done."""

        async def waits() -> bool:
            query = f"SELECT count(*) FROM pg_stat_activity WHERE {_WAITING}"
            return work.done() or bool((await self.sql(query))[0][0])

        await eventually(waits)

    async def end_what_waits(self) -> None:
        """Ends the connection whose statement waits for a lock."""
        await self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_WAITING}")

    async def rows(self) -> dict[str, str]:
        """The state of each user's reservation in SQL."""
        return dict(await self.sql("SELECT user_id, state FROM reservations WHERE sale_id = %s", self.sale_id))

    async def epoch(self) -> int:
        """The sale's epoch in SQL."""
        return int((await self.sql("SELECT epoch FROM sale_epochs WHERE sale_id = %s", self.sale_id))[0][0])

    async def current(self) -> bool:
        """Whether the gate is in service under SQL's epoch."""
        return await self.one.gate.current_epochs([self.sale_id]) == [await self.epoch()]

    def log_end(self) -> tuple[Path, int]:
        """Where Redis's log on disk ends now."""
        logs = (self.servers.redis_dir / "appendonlydir").glob("*.incr.aof")
        path = max(logs, key=lambda each: each.stat().st_mtime)
        return path, path.stat().st_size

    async def come_back_behind(self, log: tuple[Path, int]) -> None:
        """Redis as after a crash of the machine: what its log had beyond that place never reached the disk."""

        def restart() -> None:
            self.servers.stop("redis")
            path, size = log
            with path.open("r+b") as file:
                file.truncate(size)
            self.servers.start("redis")

        await asyncio.to_thread(restart)

    async def rest(self) -> None:
        """What the background does until nothing is in flight: the watch, the outbox, the reaper."""
        if not await self.current():
            await self.one.recalibrator.recalibrate(self.sale_id)
        await self.one.moves.repeat_all(0)
        await self.one.reaper.reap(self.sale_id)
        assert await self.sql("SELECT count(*) FROM gate_moves") == [(0,)]

    async def recount(self) -> tuple[int, int, int]:
        """available, reserved and sold by the rows themselves; Redis, read key by key, must have the same."""
        await self.rest()
        rows = await self.rows()
        states = list(rows.values())
        reserved, sold = states.count("RESERVED"), states.count("SOLD")
        assert reserved + sold <= 1, "more units are taken than there are"
        numbers = await self.sql(
            "SELECT share_number FROM share_numbers WHERE sale_id = %s AND reservation_id IS NOT NULL", self.sale_id
        )
        assert numbers == [(1,)] * sold
        gate: list[Any] = await self.redis.hmget(gate_key(self.sale_id), "available", "reserved", "sold")
        counts = (1 - reserved - sold, reserved, sold)
        assert tuple(map(int, gate)) == counts
        epoch = await self.epoch()
        grants, unproven = (f"inventory:{{{self.sale_id}}}:{name}:{epoch}" for name in ("grants", "unproven"))
        values: list[Any] = await self.redis.hvals(grants)
        records = [record.decode().split("\n") for record in values if record]
        held = {user: letter[0] for letter, user, _ in records if letter[0] != "L"}
        assert held == {user: state[0] for user, state in rows.items() if state != "RELEASED"}
        assert await self.redis.zcard(unproven) == 0
        return counts


@pytest_asyncio.fixture(scope="module")
async def database(servers: Servers) -> str:
    return servers.migrated_database("inventory")


@pytest.fixture
async def stock(servers: Servers, database: str) -> AsyncIterator[Stock]:
    redis_url = servers.redis_url
    async with (
        open_pool(database, name="one", size=3) as first,
        open_pool(database, name="other", size=3) as second,
        open_redis(redis_url) as redis,
    ):
        opened = Stock(servers, database, redis, Process(redis, first), Process(redis, second))
        await opened.new_sale()
        yield opened


async def test_r1_take_sql_first(stock: Stock) -> None:
    insert = stop_at(stock.one.book, "insert")
    ann = asyncio.create_task(stock.one.reserve(stock.ann))
    await insert.reached()
    # Ann has the unit and no row yet; Bob has neither.
    assert await stock.other.reserve(stock.bob) == SOLD_OUT
    assert await stock.rows() == {}
    insert.go_on()
    assert await ann == OK
    assert await stock.recount() == (0, 1, 0)


async def test_r1_give_redis_first(stock: Stock) -> None:
    assert await stock.one.reserve(stock.ann) == OK
    async with stock.transaction() as conn:
        await conn.execute("SELECT FROM reservations WHERE reservation_id = %s FOR UPDATE", (stock.ann.reservation_id,))
        release = asyncio.create_task(stock.one.release(stock.ann))
        await stock.waits_for_lock(release)
        # The release is under way and not committed: nobody gets the unit, and nobody does when it fails.
        assert await stock.other.reserve(stock.bob) == SOLD_OUT
        await stock.end_what_waits()
        with pytest.raises(DomainError):
            await release
    assert await stock.other.reserve(stock.bob) == SOLD_OUT
    assert await stock.recount() == (0, 1, 0)
    assert await stock.one.release(stock.ann) == OK
    assert await stock.other.reserve(stock.bob) == OK
    assert await stock.recount() == (0, 1, 0)


async def test_r1_no_record_check(stock: Stock) -> None:
    insert, give_back = stop_at(stock.one.book, "insert"), stop_at(stock.one.gate, "give_back")
    ann = asyncio.create_task(stock.one.reserve(stock.ann))
    await insert.reached()
    assert await stock.other.reaper.reap(stock.sale_id) == 1
    insert.go_on()
    await give_back.reached()
    assert await stock.other.reserve(stock.bob) == OK
    give_back.go_on()
    assert await ann == SPENT
    assert await stock.one.reserve(stock.wish("Carl")) == SOLD_OUT
    assert await stock.other.confirm(stock.bob) == [1]
    assert await stock.recount() == (0, 0, 1)


async def test_r1_no_current_check(stock: Stock) -> None:
    assert await stock.one.reserve(stock.ann) == OK
    switch = stop_at(stock.other.gate, "switch")
    rebuilding = asyncio.create_task(stock.other.recalibrator.recalibrate(stock.sale_id))
    await switch.reached()
    # Counted, and not in service yet: a move made now would be made to the old gate, and forgotten.
    assert await stock.one.release(stock.ann) == OK
    switch.go_on()
    await rebuilding
    assert await stock.recount() == (1, 0, 0)
    assert await stock.one.reserve(stock.bob) == OK
    assert await stock.recount() == (0, 1, 0)


async def test_r2_give_back_on_failure(stock: Stock) -> None:
    assert await stock.one.reserve(stock.ann) == OK
    async with stock.transaction() as conn:
        await conn.execute("UPDATE sale_epochs SET epoch = epoch WHERE sale_id = %s", (stock.sale_id,))
        again = asyncio.create_task(stock.other.reserve(stock.ann))
        await stock.waits_for_lock(again)
        await stock.end_what_waits()
        assert await again == AWAY
        await conn.rollback()
    assert await stock.other.reserve(stock.bob) == SOLD_OUT
    assert await stock.recount() == (0, 1, 0)


async def test_r2_no_tombstone(stock: Stock) -> None:
    insert = stop_at(stock.one.book, "insert")
    ann = asyncio.create_task(stock.one.reserve(stock.ann))
    await insert.reached()
    assert await stock.other.reaper.reap(stock.sale_id) == 1
    assert await stock.rows() == {"Ann": "RELEASED"}
    insert.go_on()
    assert await ann == SPENT
    assert await stock.other.reserve(stock.bob) == OK
    assert await stock.recount() == (0, 1, 0)


async def test_r2_no_tombstone_while_the_insert_is_not_committed(stock: Stock) -> None:
    async with stock.open_insert(stock.ann) as conn:
        reaping = asyncio.create_task(stock.other.reaper.reap(stock.sale_id))
        await stock.waits_for_lock(reaping)
        await conn.commit()
    assert await reaping == 1
    assert await stock.other.reserve(stock.bob) == SOLD_OUT
    assert await stock.recount() == (0, 1, 0)


async def test_r3_no_epoch(stock: Stock) -> None:
    log = stock.log_end()
    insert = stop_at(stock.one.book, "insert")
    ann = asyncio.create_task(stock.one.reserve(stock.ann))
    await insert.reached()
    await stock.come_back_behind(log)
    await stock.other.recalibrator.recalibrate(stock.sale_id)
    insert.go_on()
    assert await ann == AGAIN
    assert await stock.other.reserve(stock.bob) == OK
    assert await stock.recount() == (0, 1, 0)
    assert await stock.one.reserve(stock.ann) == SOLD_OUT


async def test_r3_no_share_lock_and_r3_count_first(stock: Stock) -> None:
    async with stock.open_insert(stock.ann) as conn:
        rebuilding = asyncio.create_task(stock.other.recalibrator.recalibrate(stock.sale_id))
        await stock.waits_for_lock(rebuilding)
        await conn.commit()
    await rebuilding
    assert await stock.other.reserve(stock.bob) == SOLD_OUT
    assert await stock.recount() == (0, 1, 0)


async def test_r3_count_before_commit(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = stop_at(stock.one.gate, "switch")
    first = asyncio.create_task(stock.one.recalibrator.recalibrate(stock.sale_id))
    await switch.reached()
    closed = stop_at(stock.other.gate, "close", after=True)
    second = asyncio.create_task(stock.other.recalibrator.recalibrate(stock.sale_id))
    await closed.reached()
    # The second has stopped the gate; the first brings its own into service all the same.
    switch.go_on()
    await first
    assert await stock.one.reserve(stock.ann) == OK
    counted, rows_of = Stop(), reservation_book.calibration_rows

    async def counting(conn: Any, sale_id: str) -> AsyncIterator[Any]:
        async for rows in rows_of(conn, sale_id):
            yield rows
        await counted.hold()

    monkeypatch.setattr(recalibration, "calibration_rows", counting)
    closed.go_on()
    await counted.reached()
    assert await stock.one.release(stock.ann) == OK
    counted.go_on()
    await second
    assert await stock.recount() == (1, 0, 0)
    assert await stock.one.reserve(stock.bob) == OK
    assert await stock.recount() == (0, 1, 0)


async def test_r3_no_run_id(stock: Stock) -> None:
    log = stock.log_end()
    assert await stock.one.reserve(stock.ann) == OK
    await stock.come_back_behind(log)
    # The keys are there, and know nothing of Ann.
    assert await stock.redis.hmget(gate_key(stock.sale_id), "serving", "available") == [b"1", b"1"]
    assert await stock.one.reserve(stock.bob) == AGAIN
    await stock.one.recalibrator.recalibrate(stock.sale_id)
    assert await stock.one.reserve(stock.bob) == SOLD_OUT
    assert await stock.recount() == (0, 1, 0)


async def test_r3_switch_anyway(stock: Stock) -> None:
    assert await stock.one.reserve(stock.ann) == OK
    log = stock.log_end()
    switch = stop_at(stock.other.gate, "switch")
    rebuilding = asyncio.create_task(stock.other.recalibrator.recalibrate(stock.sale_id))
    await switch.reached()
    await stock.come_back_behind(log)
    switch.go_on()
    await rebuilding
    assert await stock.one.release(stock.ann) == OK
    assert await stock.recount() == (1, 0, 0)
    assert await stock.one.reserve(stock.bob) == OK


async def test_r4_forget_released(stock: Stock) -> None:
    assert await stock.one.reserve(stock.ann) == OK
    insert = stop_at(stock.other.book, "insert")
    again = asyncio.create_task(stock.other.reserve(stock.ann))
    await insert.reached()
    assert await stock.one.release(stock.ann) == OK
    assert await stock.one.reserve(stock.bob) == OK
    insert.go_on()
    assert await again == SPENT
    assert await stock.recount() == (0, 1, 0)


# Settlement and money: saga.pml.


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        await made.new_sale(1)
        yield made


@dataclass
class Worker:
    """A settlement worker without its queue."""

    services: SettlementServices
    book: SettlementBook
    settlement: Settlement

    def settle(self, ids: Sequence[uuid.UUID]) -> "asyncio.Task[Settled]":
        """Begins to settle."""
        return asyncio.create_task(self.settlement.settle(ids))


@asynccontextmanager
async def working(rig: SettlementRig) -> AsyncIterator[Worker]:
    async with rig.services() as services:
        settlement, book = rig.settlement(services), SettlementBook(rig.pool)
        settlement._book = book
        yield Worker(services, book, settlement)


async def release_from_outside(rig: SettlementRig, ids: Sequence[uuid.UUID]) -> None:
    request = pb.BatchReleaseReservationsRequest(reservation_ids=map(str, ids))
    outcomes = (await rig.inventory.BatchReleaseReservations(request)).outcomes
    assert [outcome.reason for outcome in outcomes] == [OK] * len(ids)


async def test_r4_forget_refusal(rig: SettlementRig) -> None:
    await rig.fund(["Ann"], 1)
    ids = await rig.buy(["Ann"])
    async with working(rig) as one, working(rig) as other:
        give_back = stop_at(one.services, "release_reservations")
        first = one.settle(ids)
        await give_back.reached()
        # Refused, and not told to anybody yet. With the deposit the other must not decide anew.
        await rig.fund(["Ann"])
        await other.settle(ids)
        give_back.go_on()
        await first
    assert await rig.states(ids) == {NO_FUNDS: 1}
    assert await rig.stock() == (1, 0, 0)
    await rig.audit()


async def test_r4_forget_expiry(servers: Servers) -> None:
    async with settlement_rig(servers, hold_ttl_s=0.5) as rig, working(rig) as one, working(rig) as other:
        await rig.new_sale(1)
        await rig.fund(["Ann"])
        ids = await rig.buy(["Ann"])
        confirm = stop_at(one.services, "confirm_reservations")
        first = one.settle(ids)
        await confirm.reached()
        give_back = stop_at(one.services, "release_reservations")

        async def lapsed() -> bool:
            return (await rig.holds())[ids[0]].state == balance_pb.HOLD_STATE_EXPIRED

        await eventually(lapsed)
        confirm.go_on()
        await give_back.reached()
        # The share is Ann's, her money cannot be taken any more, and the share is not given back yet.
        assert await rig.stock() == (0, 0, 1)
        await other.settle(ids)
        give_back.go_on()
        await first
        assert await rig.states(ids) == {f"FAILED {_R.ERROR_REASON_HOLD_EXPIRED}": 1}
        assert await rig.stock() == (1, 0, 0)
        await rig.audit()


async def test_r4_guess(rig: SettlementRig) -> None:
    await rig.fund(["Ann"])
    ids = await rig.buy(["Ann"])

    class Unanswered:
        """Balance, whose capture is done and whose answer is lost."""

        def __init__(self, balance: Any) -> None:
            self._balance = balance

        def __getattr__(self, name: str) -> Any:
            return getattr(self._balance, name)

        async def BatchCaptureHolds(self, *args: Any, **options: Any) -> Any:
            await self._balance.BatchCaptureHolds(*args, **options)
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing)

    async with working(rig) as one, working(rig) as other:
        one.services._balance = Unanswered(one.services._balance)  # type: ignore[assignment]
        assert len((await one.settle(ids)).retries) == 1
        assert await rig.states(ids) == {"SETTLING": 1}
        assert await rig.stock() == (0, 0, 1)
        await other.settle(ids)
    assert await rig.states(ids) == {"CONFIRMED": 1}
    await rig.audit()


async def test_r5_capture_first(rig: SettlementRig) -> None:
    await rig.fund(["Ann"])
    ids = await rig.buy(["Ann"])
    await release_from_outside(rig, ids)
    await rig.publish(ids)
    async with rig.worker():
        assert await rig.finished(ids) == {f"FAILED {SPENT}": 1}
    assert (await rig.holds())[ids[0]].state == balance_pb.HOLD_STATE_RELEASED
    assert await rig.stock() == (1, 0, 0)
    await rig.audit()


async def test_r5_cancel_late(rig: SettlementRig) -> None:
    await rig.fund(["Ann"])
    ids = await rig.buy(["Ann"])
    async with working(rig) as one:
        hold = stop_at(one.services, "place_holds")
        settling = one.settle(ids)
        await hold.reached()
        with pytest.raises(DomainError) as caught:
            await rig.purchases.cancel(ids[0], "Ann")
        assert caught.value.reason == _R.ERROR_REASON_PURCHASE_NOT_CANCELLABLE
        hold.go_on()
        await settling
    assert await rig.states(ids) == {"CONFIRMED": 1}
    await rig.audit()


async def test_r5_no_claim(rig: SettlementRig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.fund(["Ann"])
    ids = await rig.buy(["Ann"])
    await rig.publish(ids)
    in_hand, claim = Stop(), SettlementBook.claim

    async def claiming(book: SettlementBook, claimed: Sequence[uuid.UUID]) -> list[Claimed]:
        await in_hand.hold()
        return await claim(book, claimed)

    monkeypatch.setattr(SettlementBook, "claim", claiming)
    async with rig.worker():
        await in_hand.reached()
        assert (await rig.purchases.cancel(ids[0], "Ann")).state is PurchaseState.CANCELLED
        # The same purchase comes a second time.
        await rig.publish(ids)
        in_hand.go_on()
        assert await rig.finished(ids) == {"CANCELLED": 1}
    assert await rig.holds() == {}
    assert await rig.stock() == (1, 0, 0)
    await rig.audit()
