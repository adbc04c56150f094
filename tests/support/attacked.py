"""A gRPC server under attack, with an honest client beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc

from mesh.channels import open_channel
from tests.support.bystander import Bystander, bystander
from tests.support.probe_service import SERVICE, ProbeService, probe_service

GET_SALE = f"/{SERVICE}/GetSale"
#: A call beside an attack is answered within this, s: two cores carry the attacker, the server and the caller.
UNAFFECTED_S = 1.5


@asynccontextmanager
async def attacked(**limits: float) -> AsyncIterator[tuple[ProbeService, Any, Bystander]]:
    """A server, a stub for it, and a client that goes on calling it."""
    async with probe_service(**limits) as service, open_channel(f"127.0.0.1:{service.port}") as channel:
        stub: Any = pb_grpc.InventoryServiceStub(channel)

        async def call() -> None:
            await stub.GetSale(pb.GetSaleRequest(sale_id="bystander"), timeout=10)

        await call()
        async with bystander(call) as met:
            yield service, stub, met
        assert service.alive


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
