"""A sale's whole life in this event loop: inventory, balance and purchase services, and workers on demand."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from mesh.channels import open_channel
from mesh.errors import DomainError, from_rpc_error
from purchase_svc.process import running_serve
from purchase_svc.settings import ServeSettings
from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, settlement_rig
from tests.support.waiting import eventually

State = pb.PurchaseState


def name_of(state: "pb.PurchaseState.ValueType") -> str:
    """Such as "CONFIRMED"."""
    return pb.PurchaseState.Name(state).removeprefix("PURCHASE_STATE_")


async def error_of(call: Any) -> DomainError:
    """Why the call is refused; it must be."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


@dataclass
class LifeRig:
    """What a test holds in its hands."""

    #: Inventory, balance, the purchases' database, and workers.
    services: SettlementRig
    purchases: Any

    @property
    def sale_id(self) -> str:
        """The sale that all is about."""
        return self.services.sale_id

    async def buy(self, user: str, quantity: int = 1, *, waitlist: bool = False, request_id: str = "r1") -> pb.Purchase:
        """One CreatePurchase."""
        request = pb.CreatePurchaseRequest(
            request_id=request_id, user_id=user, sale_id=self.sale_id, quantity=quantity, waitlist=waitlist
        )
        purchase: pb.Purchase = (await self.purchases.CreatePurchase(request, timeout=10)).purchase
        return purchase

    async def buy_all(
        self, users: Sequence[str], quantity: int = 1, *, waitlist: bool = False
    ) -> list[pb.CreatePurchaseOutcome]:
        """One BatchCreatePurchases."""
        requests = [
            pb.CreatePurchaseRequest(
                request_id="r1", user_id=user, sale_id=self.sale_id, quantity=quantity, waitlist=waitlist
            )
            for user in users
        ]
        response = await self.purchases.BatchCreatePurchases(
            pb.BatchCreatePurchasesRequest(requests=requests), timeout=20
        )
        return list(response.outcomes)

    async def get(self, purchase_id: str) -> pb.Purchase:
        """One GetPurchase."""
        answer = await self.purchases.GetPurchase(pb.GetPurchaseRequest(purchase_id=purchase_id), timeout=10)
        purchase: pb.Purchase = answer.purchase
        return purchase

    async def cancel(self, purchase_id: str) -> pb.Purchase:
        """One CancelPurchase."""
        answer = await self.purchases.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=purchase_id), timeout=10)
        purchase: pb.Purchase = answer.purchase
        return purchase

    async def refund(self, purchase_id: str, user: str = "") -> pb.Purchase:
        """One RefundPurchase."""
        request = pb.RefundPurchaseRequest(purchase_id=purchase_id, user_id=user)
        purchase: pb.Purchase = (await self.purchases.RefundPurchase(request, timeout=10)).purchase
        return purchase

    async def receipt(self, purchase_id: str, user: str = "") -> pb.GetReceiptResponse:
        """One GetReceipt."""
        request = pb.GetReceiptRequest(purchase_id=purchase_id, user_id=user)
        receipt: pb.GetReceiptResponse = await self.purchases.GetReceipt(request, timeout=10)
        return receipt

    async def statement(self, **page: Any) -> pb.GetSaleStatementResponse:
        """One GetSaleStatement."""
        request = pb.GetSaleStatementRequest(sale_id=self.sale_id, **page)
        statement: pb.GetSaleStatementResponse = await self.purchases.GetSaleStatement(request, timeout=10)
        return statement

    async def close_sale(self) -> None:
        """Ends the sale."""
        await self.services.inventory.CloseSale(inventory_pb.CloseSaleRequest(sale_id=self.sale_id))

    async def money(self, user: str) -> tuple[int, int]:
        """Balance and held money of a user, cents."""
        return await self.services.money(user)

    async def until(self, purchase_id: str, state: str, within_s: float = 20.0) -> pb.Purchase:
        """Waits until the purchase is in that state; it."""
        seen: list[pb.Purchase] = []

        async def there() -> bool:
            seen.append(await self.get(purchase_id))
            return name_of(seen[-1].state) == state

        await eventually(there, within_s)
        return seen[-1]

    async def confirmed(self, user: str, quantity: int = 1, *, request_id: str = "r1") -> pb.Purchase:
        """A purchase that a worker, which must be there, has settled."""
        return await self.until((await self.buy(user, quantity, request_id=request_id)).purchase_id, "CONFIRMED")

    async def finished(self, purchases: Sequence[str], within_s: float = 20.0) -> dict[str, int]:
        """Waits until all are final and clean; their states."""
        return await self.services.finished([uuid.UUID(each) for each in purchases], within_s)


@asynccontextmanager
async def life_rig(servers: Servers, *, serve: dict[str, Any] | None = None, **settle: Any) -> AsyncIterator[LifeRig]:
    """All services on fresh databases; ``serve`` goes over the server's settings, the rest over the worker's."""
    async with settlement_rig(servers, **settle) as services, serving(services, **(serve or {})) as purchases:
        yield LifeRig(services, purchases)


@asynccontextmanager
async def serving(services: SettlementRig, **changes: Any) -> AsyncIterator[Any]:
    """A stub of a purchase service beside these."""
    given: dict[str, Any] = {
        "database_url": services.settings.database_url,
        "amqp_url": services.settings.amqp_url,
        "inventory_target": services.settings.inventory_target,
        "balance_target": services.settings.balance_target,
        "listen": "127.0.0.1:0",
        "watch_interval_ms": 20,
    }
    async with running_serve(ServeSettings(**(given | changes))) as running:
        channel = open_channel(f"127.0.0.1:{running.port}")
        try:
            yield PurchaseServiceStub(channel)
        finally:
            await channel.close()
