"""A gRPC server in a process of its own, as every service is made, so that its memory can be looked at from outside.

``python -m tests.support.probe_service [name=number ...]`` prints its port and its limits are those named: fields of
ReceivingBounds, connections_max and streams_max.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvloop
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc

from mesh.logs import configure_logs
from mesh.metrics import Metrics
from mesh.receiving import ReceivingBounds
from mesh.server import GrpcServer
from tests.support.memory import memory_mb, memory_peak_mb

SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"].full_name
_ROOT = Path(__file__).resolve().parents[2]


class _Probe(pb_grpc.InventoryServiceServicer):
    """GetSale answers with the names of its request; GetStock takes its time; ListSales says much, as many KB as asked
    for; OpenSale tells the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        return pb.GetSaleResponse(sale=pb.Sale(sale_id=request.sale_id[:100]))

    async def GetStock(self, request: pb.GetStockRequest, context: Any) -> pb.GetStockResponse:
        await asyncio.sleep(1)
        return pb.GetStockResponse()

    async def ListSales(self, request: pb.ListSalesRequest, context: Any) -> pb.ListSalesResponse:
        return pb.ListSalesResponse(sales=[pb.Sale(display_name="x" * 1_000)] * request.page_size)

    async def OpenSale(self, request: pb.OpenSaleRequest, context: Any) -> pb.OpenSaleResponse:
        return pb.OpenSaleResponse(sale=pb.Sale(display_name=self._metrics.text().decode()))


async def _serve(limits: dict[str, float]) -> None:
    # Whatever it logged would fill a pipe that nobody reads.
    configure_logs("probe", "CRITICAL")
    metrics = Metrics()
    probe = _Probe(metrics)  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(probe, server))
    named = {item.name for item in fields(ReceivingBounds)}
    receiving = ReceivingBounds(**{name: value for name, value in limits.items() if name in named})  # type: ignore[arg-type]
    others: dict[str, Any] = {name: value for name, value in limits.items() if name not in named}
    async with GrpcServer("127.0.0.1:0", [register], metrics=metrics, receiving=receiving, **others) as server:
        await server.serving()
        sys.stdout.write(f"port {server.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


class ProbeService:
    """The process, as a test sees it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        return memory_mb(self._process.pid)

    @property
    def memory_peak_mb(self) -> float:
        """The most it ever was."""
        return memory_peak_mb(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None


@asynccontextmanager
async def probe_service(**limits: float) -> AsyncIterator[ProbeService]:
    """Starts it; ends it with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.probe_service", *(f"{name}={value}" for name, value in limits.items())),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0", "PYTHONPATH": f"{_ROOT}:{_ROOT / 'gen'}"},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (line := await process.stdout.readline()).startswith(b"port "):
                assert line, "the probe ended"
        yield ProbeService(process, int(line.split()[1]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    given = (each.split("=") for each in sys.argv[1:])
    uvloop.run(_serve({name: json.loads(value) for name, value in given}))
