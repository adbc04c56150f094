"""Reflection can be switched off, for all services by one setting; they serve all the same."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import balance_svc.process
import balance_svc.settings
import inventory_svc.settings
import purchase_svc.settings
from mesh.server import REFLECTION_SETTING
from mesh.settings import read_settings
from tests.support.inventory_rig import inventory_rig
from tests.support.purchase_rig import purchase_rig
from tests.support.servers import Servers

NEEDED = {
    "DATABASE_URL": "postgresql://",
    "REDIS_URL": "redis://",
    "AMQP_URL": "amqp://",
    "INVENTORY_TARGET": "i",
    "BALANCE_TARGET": "b",
}


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        (inventory_svc.settings.Settings, inventory_svc.settings.PREFIX),
        (balance_svc.settings.Settings, balance_svc.process.PREFIX),
        (purchase_svc.settings.ServeSettings, purchase_svc.settings.PREFIX),
    ],
)
def test_one_setting_is_heeded_by_every_service(settings: type[Any], prefix: str) -> None:
    given = {prefix + name: value for name, value in NEEDED.items()}
    assert read_settings(settings, prefix, given).reflection
    assert not read_settings(settings, prefix, given | {REFLECTION_SETTING: "off"}).reflection


async def services(channel: grpc.aio.Channel) -> set[str]:
    """What reflection lists. Raises AioRpcError, UNIMPLEMENTED without it."""

    async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    async for answer in stub.ServerReflectionInfo(asked()):
        return {each.name for each in answer.list_services_response.service}
    return set()


async def refused(port: int) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services(channel)
    return caught.value.code()


async def test_inventory_and_purchase_tell_their_contract_only_if_they_may(servers: Servers) -> None:
    async with purchase_rig(servers) as rig, grpc.aio.insecure_channel(f"127.0.0.1:{rig.running.port}") as channel:
        assert "flashsale.purchase.v1.PurchaseService" in await services(channel)
    async with purchase_rig(servers, reflection=False) as rig:
        assert await refused(rig.running.port) is grpc.StatusCode.UNIMPLEMENTED
        assert (await rig.buy(await rig.new_sale())).purchase_id
    async with inventory_rig(servers, reflection=False) as inventory:
        assert await inventory.open_sale()
        assert await refused(inventory.port) is grpc.StatusCode.UNIMPLEMENTED


async def test_balance_tells_its_contract_only_if_it_may(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    for reflection in (True, False):
        settings = balance_svc.settings.Settings(database_url=url, listen="127.0.0.1:0", reflection=reflection)
        async with balance_svc.process.running(settings) as running:
            if not reflection:
                assert await refused(running.port) is grpc.StatusCode.UNIMPLEMENTED
                continue
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
                assert "flashsale.balance.v1.BalanceService" in await services(channel)
