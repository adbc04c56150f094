"""A channel to several replicas: calls spread over those that are there, and what is lost with one that goes."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc

from mesh.channels import open_channel
from mesh.server import GrpcServer, run_process, stop_signal
from stack.ports import PortLease
from stack.services import base_environment
from tests.faults.links import ProxyThread

SERVICE = "flashsale.inventory.v1.InventoryService"


class Named(pb_grpc.InventoryServiceServicer):
    """Tells which replica has answered, after 5 ms."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        await asyncio.sleep(0.005)
        return pb.GetSaleResponse(sale=pb.Sale(sale_id=self._name))


def replica(listen: str) -> GrpcServer:
    register = (
        SERVICE,
        lambda server: pb_grpc.add_InventoryServiceServicer_to_server(Named(listen), server),  # type: ignore[abstract]
    )
    return GrpcServer(listen, [register], grace_s=1)


async def serve() -> None:
    """A replica as a process of its own: ``python -m tests.integration.test_mesh_channels host:port``."""
    stop = stop_signal()
    async with replica(sys.argv[1]) as server:
        await server.serving()
        await stop.wait()


class Callers:
    """Calls without a pause, several at once, until left."""

    def __init__(self, stub: Any, count: int) -> None:
        self._stub = stub
        self.count = count
        #: When each call began, and who answered it ("" for a failure).
        self.calls: list[tuple[float, str]] = []
        self.codes: set[grpc.StatusCode] = set()

    async def _call_on(self) -> None:
        while True:
            began = time.monotonic()
            try:
                answer = await self._stub.GetSale(pb.GetSaleRequest(), timeout=5)
                self.calls.append((began, answer.sale.sale_id))
            except grpc.aio.AioRpcError as error:
                self.calls.append((began, ""))
                self.codes.add(error.code())
                await asyncio.sleep(0.001)

    def since(self, moment: float) -> Counter[str]:
        """How many calls that began after this moment each replica has answered."""
        return Counter(name for began, name in self.calls if began >= moment)

    async def until(self, *names: str, within_s: float) -> float:
        """Waits until each of these has answered calls begun from now on; the seconds. Raises TimeoutError."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            while not all(self.since(began)[name] >= 10 for name in names):
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    @classmethod
    @asynccontextmanager
    async def at_work(cls, target: str, count: int = 8) -> AsyncIterator["Callers"]:
        async with open_channel(target) as channel, asyncio.TaskGroup() as group:
            callers = cls(pb_grpc.InventoryServiceStub(channel), count)
            tasks = [group.create_task(callers._call_on()) for _ in range(count)]
            yield callers
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def two_addresses() -> AsyncIterator[tuple[str, str, str]]:
    """Addresses for two replicas, and the target that lists them."""
    lease = PortLease()
    try:
        one, other = lease.ports.address("inventory"), lease.ports.address("inventory-2")
        yield one, other, f"ipv4:{one},{other}"
    finally:
        lease.close()


async def test_a_replica_that_stops_is_left_out_and_taken_in_again_when_it_is_back() -> None:
    async with two_addresses() as (one, other, target), AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(replica(one))
        await stack.enter_async_context(replica(other))
        callers = await stack.enter_async_context(Callers.at_work(target))
        await callers.until(one, other, within_s=5)
        assert not callers.since(0)[""]
        # From here on: the two were not connected at the same moment.
        connected = time.monotonic()
        await callers.until(one, other, within_s=5)
        shares = callers.since(connected)
        assert abs(shares[one] - shares[other]) <= callers.count, shares

        await first.aclose()
        stopped = time.monotonic()
        await callers.until(other, within_s=5)
        assert set(callers.since(stopped)) == {other}

        back = time.monotonic()
        await stack.enter_async_context(replica(one))
        await callers.until(one, other, within_s=2)
        assert not callers.since(back)[""]


async def test_only_calls_under_way_are_lost_with_a_killed_replica() -> None:
    async with two_addresses() as (one, other, target), AsyncExitStack() as stack:
        command = (sys.executable, "-m", "tests.integration.test_mesh_channels", one)
        process = await asyncio.create_subprocess_exec(
            *command, env=base_environment(), stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await stack.enter_async_context(replica(other))
            callers = await stack.enter_async_context(Callers.at_work(target))
            await callers.until(one, other, within_s=20)
            assert not callers.since(0)[""]
            process.kill()
            await process.wait()
            dead = time.monotonic()
            await callers.until(other, within_s=5)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert set(callers.since(dead + 0.1)) <= {other}
        # Those under way, and those sent before the connection's end was noticed.
        assert callers.since(0)[""] <= 3 * callers.count
        assert callers.codes <= {grpc.StatusCode.UNAVAILABLE}


async def test_without_any_replica_calls_fail_at_once() -> None:
    async with two_addresses() as (_, _other, target), open_channel(target) as channel:
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetSale(pb.GetSaleRequest(), timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 5


async def test_a_service_that_is_slow_to_say_hello_can_be_connected_to() -> None:
    async with replica("127.0.0.1:0") as server:
        await server.serving()
        with ProxyThread() as proxies:
            proxy = proxies.start(("127.0.0.1", server.port))
            proxy.delay(0.8)
            async with open_channel(proxy.address) as channel:
                await pb_grpc.InventoryServiceStub(channel).GetSale(pb.GetSaleRequest(), timeout=10)


if __name__ == "__main__":
    sys.exit(run_process(serve))
