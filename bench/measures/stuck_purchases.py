"""A Purchase Service that takes what it is sent and never answers, so that a gateway before it stays full."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health, health_pb2_grpc

from mesh.transport import PLAINTEXT, Transport

# What the gateway's keepalive asks for; by default a server ends the connection of a client that pings so often.
_OPTIONS = [("grpc.http2.min_ping_interval_without_data_ms", 5_000)]


class StuckPurchases(pb_grpc.PurchaseServiceServicer):
    """Counts the purchases it is sent, and keeps every caller waiting up to the caller's own deadline."""

    def __init__(self) -> None:
        self.taken = 0

    async def BatchCreatePurchases(
        self, request: pb.BatchCreatePurchasesRequest, context: Any
    ) -> pb.BatchCreatePurchasesResponse:
        """Never answers."""
        self.taken += len(request.requests)
        never: asyncio.Future[pb.BatchCreatePurchasesResponse] = asyncio.get_running_loop().create_future()
        return await never


@asynccontextmanager
async def stuck_purchases(transport: Transport = PLAINTEXT) -> AsyncIterator[tuple[str, StuckPurchases]]:
    """Serves in this process, and is healthy by its own account; its gRPC target, and itself."""
    stuck = StuckPurchases()  # type: ignore[abstract]
    server = grpc.aio.server(options=_OPTIONS)
    pb_grpc.add_PurchaseServiceServicer_to_server(stuck, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = transport.listen(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", stuck
    finally:
        await server.stop(grace=None)
