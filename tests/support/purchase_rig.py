"""A purchase service in this event loop, with a real inventory service and no balance service beside it, on the test
run's servers."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

import inventory_svc.process
import inventory_svc.sale_book
import inventory_svc.settings
from mesh.channels import open_channel
from purchase_svc.process import Running, running_serve
from purchase_svc.settings import ServeSettings
from tests.support.servers import Servers
from tests.support.settlement_rig import declare_queues


@dataclass
class PurchaseRig:
    """What a test of the purchase service holds in its hands."""

    purchases: Any
    inventory: Any
    running: Running
    settings: ServeSettings
    #: Of the inventory service.
    inventory_database_url: str

    async def sql(self, query: str, *parameters: object) -> list[Any]:
        """Runs a statement on the purchase database; the rows it returns, if it does."""
        async with await psycopg.AsyncConnection.connect(self.settings.database_url, autocommit=True) as conn:
            cursor = await conn.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def new_sale(
        self, total: int = 100, *, per_user: int = 10, per_purchase: int = 10, price: int = 1000, opened: bool = True
    ) -> str:
        """A fresh sale, open unless said otherwise; its id."""
        request = inventory_pb.CreateSaleRequest(
            request_id=uuid.uuid4().hex,
            display_name="Fund",
            unit_price=Money(amount_minor=price, currency_code="EUR"),
            total=total,
            per_user_limit=per_user,
            per_purchase_limit=per_purchase,
        )
        sale_id: str = (await self.inventory.CreateSale(request)).sale.sale_id
        if opened:
            await self.inventory.OpenSale(inventory_pb.OpenSaleRequest(sale_id=sale_id))
        return sale_id

    async def stock(self, sale_id: str) -> tuple[int, int, int]:
        """available, reserved and sold, as the gate has them."""
        stock = (await self.inventory.GetStock(inventory_pb.GetStockRequest(sale_id=sale_id))).stock
        return stock.available, stock.reserved, stock.sold

    async def buy(self, sale_id: str, user: str = "alice", request: str = "r1", quantity: int = 1) -> pb.Purchase:
        """One CreatePurchase."""
        response = await self.purchases.CreatePurchase(wish(sale_id, user, request, quantity), timeout=10)
        purchase: pb.Purchase = response.purchase
        return purchase


def wish(sale_id: str, user: str = "alice", request: str = "r1", quantity: int = 1) -> pb.CreatePurchaseRequest:
    """A request to buy."""
    return pb.CreatePurchaseRequest(request_id=request, user_id=user, sale_id=sale_id, quantity=quantity)


@asynccontextmanager
async def purchase_rig(servers: Servers, **changes: Any) -> AsyncIterator[PurchaseRig]:
    """Both services on fresh databases; ``changes`` go over the purchase service's settings."""
    async with AsyncExitStack() as stack:
        inventory_settings = inventory_svc.settings.Settings(
            database_url=servers.migrated_database("inventory"), redis_url=servers.redis_url, listen="127.0.0.1:0"
        )
        inventory = await stack.enter_async_context(inventory_svc.process.running(inventory_settings))
        given = {
            "database_url": servers.migrated_database("purchase"),
            "amqp_url": servers.amqp_url,
            "inventory_target": f"127.0.0.1:{inventory.port}",
            "balance_target": "127.0.0.1:1",
            "listen": "127.0.0.1:0",
        }
        # No worker runs that would make the queues.
        await declare_queues(servers.amqp_url)
        settings = ServeSettings(**(given | changes))
        running = await stack.enter_async_context(running_serve(settings))
        channels = [open_channel(f"127.0.0.1:{port}") for port in (running.port, inventory.port)]
        for channel in channels:
            stack.push_async_callback(channel.close)
        yield PurchaseRig(
            PurchaseServiceStub(channels[0]),
            InventoryServiceStub(channels[1]),
            running,
            settings,
            inventory_settings.database_url,
        )
