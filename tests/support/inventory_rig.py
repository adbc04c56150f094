"""An inventory service in this event loop, on the test run's servers."""

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from inventory_svc.process import running
from inventory_svc.settings import Settings
from mesh.channels import open_channel
from mesh.identity import purchase_id
from tests.support.servers import Servers
from tests.support.waiting import eventually

OK = ErrorReason.ERROR_REASON_UNSPECIFIED
SOLD_OUT = ErrorReason.ERROR_REASON_SOLD_OUT
#: Reasons for which a caller repeats the same request.
AGAIN = (ErrorReason.ERROR_REASON_UNAVAILABLE, ErrorReason.ERROR_REASON_STOCK_RECALIBRATING)


def item(sale_id: str, user: str, request: str = "r1", quantity: int = 1) -> pb.ReserveItem:
    """One wish, with the id that its contents give it."""
    reservation_id = str(purchase_id(user, sale_id, request))
    return pb.ReserveItem(
        reservation_id=reservation_id, sale_id=sale_id, user_id=user, request_id=request, quantity=quantity
    )


@dataclass
class InventoryRig:
    """What a test of the inventory service holds in its hands."""

    inventory: Any
    settings: Settings
    #: Of a service in this event loop; 0 for one elsewhere.
    port: int = 0

    async def sql(self, query: str, *parameters: object) -> list[Any]:
        """Runs a statement on the database; the rows it returns, if it does."""
        async with await psycopg.AsyncConnection.connect(self.settings.database_url, autocommit=True) as conn:
            cursor = await conn.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def create_sale(
        self, total: int = 100, *, per_user: int = 10, per_purchase: int = 10, **given: Any
    ) -> pb.Sale:
        """A fresh DRAFT sale."""
        terms: dict[str, Any] = {
            "request_id": uuid.uuid4().hex,
            "display_name": "Fund",
            "unit_price": Money(amount_minor=1_000, currency_code="EUR"),
            "total": total,
            "per_user_limit": per_user,
            "per_purchase_limit": per_purchase,
        }
        response = await self.inventory.CreateSale(pb.CreateSaleRequest(**(terms | given)), timeout=10)
        sale: pb.Sale = response.sale
        return sale

    async def open_sale(self, total: int = 100, *, per_user: int = 10, per_purchase: int = 10) -> str:
        """A fresh OPEN sale; its id."""
        sale = await self.create_sale(total, per_user=per_user, per_purchase=per_purchase)
        await self.inventory.OpenSale(pb.OpenSaleRequest(sale_id=sale.sale_id), timeout=10)
        return sale.sale_id

    async def reserve(self, items: Sequence[pb.ReserveItem]) -> list[int]:
        """The reason for each item."""
        response = await self.inventory.BatchReserveShares(pb.BatchReserveSharesRequest(items=items), timeout=15)
        return [outcome.reason for outcome in response.outcomes]

    async def reserve_until_decided(self, items: Sequence[pb.ReserveItem]) -> list[int]:
        """As a caller does it: repeats the items that may be repeated until each has a final answer."""
        reasons = await self.reserve(items)

        async def decided() -> bool:
            again = [place for place, reason in enumerate(reasons) if reason in AGAIN]
            if again:
                for place, reason in zip(again, await self.reserve([items[place] for place in again]), strict=True):
                    reasons[place] = reason
            return not any(reason in AGAIN for reason in reasons)

        await eventually(decided, within_s=40)
        return reasons

    async def confirm(self, ids: Iterable[str]) -> list[tuple[int, list[int]]]:
        """Reason and share numbers of each id."""
        request = pb.BatchConfirmReservationsRequest(reservation_ids=list(ids))
        response = await self.inventory.BatchConfirmReservations(request, timeout=15)
        return [(outcome.reason, list(outcome.share_numbers)) for outcome in response.outcomes]

    async def release(self, ids: Iterable[str], *, revoke_sold: bool = False) -> list[int]:
        """The reason for each id."""
        request = pb.BatchReleaseReservationsRequest(reservation_ids=list(ids), revoke_sold=revoke_sold)
        response = await self.inventory.BatchReleaseReservations(request, timeout=15)
        return [outcome.reason for outcome in response.outcomes]

    async def stock(self, sale_id: str, *, book: bool = False) -> tuple[int, int, int]:
        """available, reserved and sold, as the gate or the book has them; their sum is the total."""
        source = pb.StockSource.STOCK_SOURCE_BOOK if book else pb.StockSource.STOCK_SOURCE_GATE
        stock = (await self.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id, source=source), timeout=10)).stock
        assert stock.available + stock.reserved + stock.sold == stock.total
        assert min(stock.available, stock.reserved, stock.sold) >= 0
        return stock.available, stock.reserved, stock.sold

    async def recalibrate(self, sale_id: str) -> pb.Stock:
        """Rebuilds the gate."""
        response = await self.inventory.RecalibrateSale(pb.RecalibrateSaleRequest(sale_id=sale_id), timeout=20)
        stock: pb.Stock = response.stock
        return stock


@asynccontextmanager
async def inventory_rig(servers: Servers, **changes: Any) -> AsyncIterator[InventoryRig]:
    """The service on a fresh database; ``changes`` go over its settings."""
    settings = Settings(
        database_url=servers.migrated_database("inventory"), redis_url=servers.redis_url, listen="127.0.0.1:0"
    )
    async with second_rig(replace(settings, **changes)) as rig:
        yield rig


@asynccontextmanager
async def second_rig(settings: Settings) -> AsyncIterator[InventoryRig]:
    """A service on a database that is there already, such as another process of the same service."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running(settings))
        channel = open_channel(f"127.0.0.1:{service.port}")
        stack.push_async_callback(channel.close)
        yield InventoryRig(InventoryServiceStub(channel), settings, service.port)
