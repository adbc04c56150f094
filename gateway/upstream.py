"""Whether the Purchase Service can be reached, asked by its health service (grpc.health.v1)."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.logs import get_logger

log = get_logger(__name__)

_EVERY_S = 0.5
_TIMEOUT_S = 1.0


class Upstream:
    """Knows whether purchases can be sent on, as of half a second ago."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        self.serving = False

    async def watch(self) -> None:
        """Asks for ever; run in the background."""
        while True:
            await self.check()
            await asyncio.sleep(_EVERY_S)

    async def check(self) -> None:
        """Asks once."""
        try:
            answer = await self._check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError:
            serving = False
        if serving != self.serving:
            log.info("purchase service", serving=serving)
        self.serving = serving
