"""Inventory and balance in this event loop, purchases in their database, and settlement workers on demand."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aio_pika
import psycopg
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

import balance_svc.process
import balance_svc.settings
import inventory_svc.process
import inventory_svc.sale_book
import inventory_svc.settings
from mesh import identity
from mesh.channels import open_channel
from mesh.postgres import Pool, open_pool
from purchase_svc import settlement_queue
from purchase_svc.pacing import Pace, TokenBucket
from purchase_svc.purchase import Purchase, PurchaseState, Wish
from purchase_svc.purchase_book import PurchaseBook, Terms
from purchase_svc.settlement import Settlement
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_process import Running, running_settle
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_services import SettlementServices
from purchase_svc.settlement_settings import SettlementSettings
from tests.support.servers import Servers
from tests.support.waiting import eventually

PRICE = 1_000
OPEN_PACE = Pace(rate_per_s=100_000, burst=1_000)
_HOLD_STATES = balance_pb.HoldState
_CHUNK = 500


class Service:
    """A service of the mesh in this event loop that can go away and come back on the same port."""

    def __init__(self, running: Any, settings: Any) -> None:
        self._running = running
        self._settings = settings
        self._stack = AsyncExitStack()

    @property
    def target(self) -> str:
        """host:port"""
        return str(self._settings.listen)

    async def start(self) -> None:
        """Serves again."""
        service = await self._stack.enter_async_context(self._running(self._settings))
        self._settings = replace(self._settings, listen=f"127.0.0.1:{service.port}")

    async def stop(self) -> None:
        """Ends it; calls under way finish."""
        await self._stack.aclose()


@dataclass
class SettlementRig:
    """What a test of settlement holds in its hands."""

    inventory: Any
    balance: Any
    inventory_service: Service
    balance_service: Service
    settings: SettlementSettings
    pool: Pool
    publisher: SettlementPublisher
    sale_id: str = ""
    users: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.book = SettlementBook(self.pool)
        self.purchases = PurchaseBook(self.pool)

    async def sql(self, query: str, *parameters: object) -> list[Any]:
        """Runs a statement on the purchase database; the rows it returns, if it does."""
        async with await psycopg.AsyncConnection.connect(self.settings.database_url, autocommit=True) as conn:
            cursor = await conn.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def new_sale(self, total: int, *, per_user: int = 10, per_purchase: int = 0) -> str:
        """Opens a sale; later methods are about it."""
        request = inventory_pb.CreateSaleRequest(
            request_id=uuid.uuid4().hex,
            display_name="Fund",
            unit_price=Money(amount_minor=PRICE, currency_code="EUR"),
            total=total,
            per_user_limit=per_user,
            per_purchase_limit=per_purchase,
        )
        self.sale_id = (await self.inventory.CreateSale(request)).sale.sale_id
        await self.inventory.OpenSale(inventory_pb.OpenSaleRequest(sale_id=self.sale_id))
        return self.sale_id

    async def fund(self, users: Iterable[str], amount_minor: int = 10 * PRICE) -> None:
        """Opens accounts with so much money on them."""
        users = list(users)
        self.users.update(users)
        keys = [balance_pb.AccountKey(user_id=user, currency_code="EUR") for user in users]
        await self.balance.BatchCreateAccounts(balance_pb.BatchCreateAccountsRequest(accounts=keys))
        if amount_minor:
            money = Money(amount_minor=amount_minor, currency_code="EUR")
            items = [balance_pb.DepositItem(request_id=uuid.uuid4().hex, user_id=user, amount=money) for user in users]
            await self.balance.BatchDeposit(balance_pb.BatchDepositRequest(deposits=items))

    async def money(self, user: str) -> tuple[int, int]:
        """Balance and held money of a user, cents."""
        answer = await self.balance.GetBalance(balance_pb.GetBalanceRequest(user_id=user, currency_code="EUR"))
        return answer.account.balance_minor, answer.account.held_minor

    def wishes(self, users: Iterable[str], quantity: int = 1, request: str = "r1") -> list[Wish]:
        """What these users ask for."""
        return [
            Wish(identity.purchase_id(user, self.sale_id, request), user, self.sale_id, request, quantity)
            for user in users
        ]

    async def reserve(self, wishes: Sequence[Wish]) -> None:
        """Reserves at inventory, as a buy does first."""
        for start in range(0, len(wishes), _CHUNK):
            items = [
                inventory_pb.ReserveItem(
                    reservation_id=str(wish.purchase_id),
                    sale_id=wish.sale_id,
                    user_id=wish.user_id,
                    request_id=wish.request_id,
                    quantity=wish.quantity,
                )
                for wish in wishes[start : start + _CHUNK]
            ]
            response = await self.inventory.BatchReserveShares(inventory_pb.BatchReserveSharesRequest(items=items))
            assert all(outcome.reason == 0 for outcome in response.outcomes)

    async def buy(self, users: Iterable[str], quantity: int = 1, request: str = "r1") -> list[uuid.UUID]:
        """Purchases in state RESERVED that nobody has queued."""
        wishes = self.wishes(users, quantity, request)
        await self.reserve(wishes)
        for start in range(0, len(wishes), _CHUNK):
            await self.purchases.insert(wishes[start : start + _CHUNK], {self.sale_id: Terms(PRICE, "EUR")})
        return [wish.purchase_id for wish in wishes]

    async def publish(self, ids: Sequence[uuid.UUID], per_message: int = 250) -> None:
        """Queues purchases, as the serving process does."""
        found = await self.purchases.get_many(ids)
        for partition in range(settlement_queue.PARTITIONS):
            some = [each for each in ids if found[each].partition == partition]
            for start in range(0, len(some), per_message):
                await self.publisher.publish(partition, some[start : start + per_message])
        await self.purchases.mark_queued(ids)

    async def states(self, ids: Sequence[uuid.UUID]) -> dict[str, int]:
        """How many are in which state, with the reason's number where there is one."""
        rows = await self.purchases.get_many(ids)
        return dict(Counter(f"{each.state}{f' {each.reason}' if each.reason else ''}" for each in rows.values()))

    async def finished(self, ids: Sequence[uuid.UUID], within_s: float = 20.0) -> dict[str, int]:
        """Waits until all are final and clean, or parked; their states."""

        async def done() -> bool:
            query = """SELECT count(*) FROM purchases
                       WHERE purchase_id = ANY(%s) AND (cleanup_pending OR
                            state IN ('WAITLISTED', 'RESERVED', 'SETTLING', 'REFUNDING'))"""
            return bool((await self.sql(query, list(ids)))[0][0] == 0)

        await eventually(done, within_s)
        return await self.states(ids)

    async def stock(self, source: int = inventory_pb.STOCK_SOURCE_GATE) -> tuple[int, int, int]:
        """available, reserved and sold."""
        request = inventory_pb.GetStockRequest(sale_id=self.sale_id, source=source)  # type: ignore[arg-type]
        stock = (await self.inventory.GetStock(request)).stock
        assert stock.available + stock.reserved + stock.sold == stock.total
        return stock.available, stock.reserved, stock.sold

    async def holds(self) -> dict[uuid.UUID, balance_pb.Hold]:
        """All holds for the sale."""
        found: dict[uuid.UUID, balance_pb.Hold] = {}
        token = ""
        while True:
            page = await self.balance.ListHolds(
                balance_pb.ListHoldsRequest(beneficiary=self.sale_id, page_size=10_000, page_token=token)
            )
            found |= {uuid.UUID(hold.hold_id): hold for hold in page.holds}
            token = page.next_page_token
            if not token:
                return found

    async def reservations(self) -> dict[uuid.UUID, inventory_pb.Reservation]:
        """All reservations of the sale."""
        found: dict[uuid.UUID, inventory_pb.Reservation] = {}
        token = ""
        while True:
            page = await self.inventory.ListReservations(
                inventory_pb.ListReservationsRequest(sale_id=self.sale_id, page_size=10_000, page_token=token)
            )
            found |= {uuid.UUID(each.reservation_id): each for each in page.reservations}
            token = page.next_page_token
            if not token:
                return found

    async def all_purchases(self) -> list[Purchase]:
        """Every purchase of the sale."""
        ids = [row[0] for row in await self.sql("SELECT purchase_id FROM purchases WHERE sale_id = %s", self.sale_id)]
        return list((await self.purchases.get_many(ids)).values())

    async def audit(self) -> None:
        """Holds the promises I1, I2, I3 and I6 against everything that the three services keep of the sale."""
        holds, reservations = await self.holds(), await self.reservations()
        numbers: list[int] = []
        for purchase in await self.all_purchases():
            hold, reservation = holds.get(purchase.purchase_id), reservations[purchase.purchase_id]
            if purchase.state is PurchaseState.CONFIRMED:
                assert hold is not None
                assert hold.state == _HOLD_STATES.HOLD_STATE_CAPTURED
                assert hold.amount.amount_minor == purchase.amount_minor
                assert reservation.state == inventory_pb.RESERVATION_STATE_SOLD
                assert tuple(reservation.share_numbers) == purchase.share_numbers
                numbers += purchase.share_numbers
            elif purchase.state.final:
                assert reservation.state == inventory_pb.RESERVATION_STATE_RELEASED
                if purchase.state is PurchaseState.REFUNDED:
                    assert hold is not None
                    assert hold.state == _HOLD_STATES.HOLD_STATE_REVERSED
                open_states = (_HOLD_STATES.HOLD_STATE_HELD, _HOLD_STATES.HOLD_STATE_CAPTURED)
                assert hold is None or hold.state not in open_states
        assert len(numbers) == len(set(numbers))
        await self._audit_money(len(numbers) * PRICE)
        await eventually(self._gate_equals_book)
        assert (await self.stock())[2] == len(numbers)

    async def _gate_equals_book(self) -> bool:
        return await self.stock() == await self.stock(inventory_pb.STOCK_SOURCE_BOOK)

    async def _audit_money(self, paid_minor: int) -> None:
        books = await self.balance.CheckBooks(balance_pb.CheckBooksRequest(beneficiary=self.sale_id))
        assert not books.wrong_accounts
        assert not books.wrong_transfers
        for totals in books.totals:
            assert totals.entries_sum_minor == 0
            assert totals.balances_sum_minor == totals.customer_entries_sum_minor
            assert totals.held_sum_minor == totals.open_holds_sum_minor
        request = balance_pb.ListLedgerEntriesRequest(account=f"sale:{self.sale_id}", page_size=10_000)
        entries = (await self.balance.ListLedgerEntries(request)).entries
        assert sum(entry.amount.amount_minor for entry in entries) == paid_minor
        assert len({entry.transfer_id for entry in entries}) == len(entries)

    @asynccontextmanager
    async def services(self, kind: type[SettlementServices] = SettlementServices) -> AsyncIterator[Any]:
        """What a worker calls; ``kind`` may be one that breaks off."""
        inventory, balance = open_channel(self.settings.inventory_target), open_channel(self.settings.balance_target)
        try:
            yield kind(inventory, balance, timeout_s=5.0)
        finally:
            await inventory.close()
            await balance.close()

    def settlement(self, services: SettlementServices, pace: Pace = OPEN_PACE, *, attempts_max: int = 12) -> Settlement:
        """The saga by itself, without a queue."""
        return Settlement(self.book, services, TokenBucket(self.pool, pace), attempts_max=attempts_max)

    @asynccontextmanager
    async def worker(self, **changes: Any) -> AsyncIterator[Running]:
        """A settlement worker, complete with queue and sweeper; it must not break."""
        async with running_settle(replace(self.settings, **changes)) as running:
            yield running
        assert not running.crashed.done(), running.crashed.result()

    async def dead_letters(self) -> int:
        """Messages in the dead-letter queue."""
        return (await self.publisher.depths())[1]


async def declare_queues(amqp_url: str) -> None:
    """Makes the settlement queues, as a worker does."""
    async with await aio_pika.connect(amqp_url) as connection:
        await settlement_queue.declare(await connection.channel())


async def empty_queues(amqp_url: str, *, delete: bool = False) -> None:
    """Purges, or deletes, every settlement queue: others may have left messages there."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        names = [settlement_queue.queue_name(each) for each in range(settlement_queue.PARTITIONS)]
        names += [settlement_queue.retry_name(delay) for delay in settlement_queue.RETRY_DELAYS_S]
        if delete:
            for name in names:
                await channel.queue_delete(name)
            return
        await settlement_queue.declare(channel)
        for name in [*names, settlement_queue.DEAD]:
            await (await channel.get_queue(name, ensure=False)).purge()


@asynccontextmanager
async def settlement_rig(
    servers: Servers, *, hold_ttl_s: float = 120.0, **changes: Any
) -> AsyncIterator[SettlementRig]:
    """Both services on fresh databases; ``changes`` go over the worker's settings (bucket opened, quick sweeps)."""
    # Starting a server blocks the event loop, so all are there before anything connects.
    amqp_url = servers.amqp_url
    async with AsyncExitStack() as stack:
        inventory = Service(
            inventory_svc.process.running,
            inventory_svc.settings.Settings(
                database_url=servers.migrated_database("inventory"), redis_url=servers.redis_url, listen="127.0.0.1:0"
            ),
        )
        balance = Service(
            balance_svc.process.running,
            balance_svc.settings.Settings(
                database_url=servers.migrated_database("balance"),
                listen="127.0.0.1:0",
                hold_ttl_s=hold_ttl_s,
                expiry_interval_s=0.05,
            ),
        )
        purchase_url = servers.migrated_database("purchase")
        for service in (inventory, balance):
            await service.start()
            stack.push_async_callback(service.stop)
        await empty_queues(amqp_url)
        given: dict[str, Any] = {
            "database_url": purchase_url,
            "amqp_url": amqp_url,
            "inventory_target": inventory.target,
            "balance_target": balance.target,
            "listen": "127.0.0.1:0",
            "rate_per_s": OPEN_PACE.rate_per_s,
            "burst": OPEN_PACE.burst,
            "sweep_interval_ms": 200,
            "stale_after_ms": 1_000,
            "unqueued_after_ms": 500,
            "abandoned_after_ms": 1_000,
        }
        channels = [open_channel(service.target) for service in (inventory, balance)]
        for channel in channels:
            stack.push_async_callback(channel.close)
        yield SettlementRig(
            InventoryServiceStub(channels[0]),
            BalanceServiceStub(channels[1]),
            inventory,
            balance,
            SettlementSettings(**(given | changes)),
            await stack.enter_async_context(open_pool(purchase_url, name="rig", size=6)),
            await stack.enter_async_context(SettlementPublisher(amqp_url, name="rig")),
        )
