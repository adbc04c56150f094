"""grpc.health.v1 of a server that ends: whoever watches is told in time to send its calls elsewhere."""

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

#: Told NOT_SERVING, a watching client sends its next calls elsewhere; those on their way by then are still taken,
#: seconds. A hundred times the round trip within a data centre.
NOTICE_S = 0.25


class Health(HealthServicer):
    """The status of services, with streams that end when the server does.

    A Watch stream never ends by itself: it would use up the time that calls under way are given.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Streams the status of a service: now, and whenever it changes, until the server ends."""
        watch = asyncio.get_running_loop().create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            watch.cancel()
            self._watches.discard(watch)
        if not watch.cancelled():
            watch.result()

    async def drain(self) -> None:
        """Says NOT_SERVING for good, gives those who watch the time to act on it, if anybody does, and ends their
        streams. Calls are still taken until this returns."""
        await self.enter_graceful_shutdown()
        if self._watches:
            await asyncio.sleep(NOTICE_S)
        for watch in self._watches:
            watch.cancel()
