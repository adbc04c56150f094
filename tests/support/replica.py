"""A purchase service that knows nothing but where it listens, as a process of its own: to be killed.

`python -m tests.support.replica HOST:PORT` says "serving" on standard output and serves until it is ended.
"""

import asyncio
import sys
from typing import Any

from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc

from mesh.server import GrpcServer

_NAME = pb.DESCRIPTOR.services_by_name["PurchaseService"].full_name


class _Replica(pb_grpc.PurchaseServiceServicer):
    def __init__(self, listen: str) -> None:
        self._listen = listen

    async def GetPurchase(self, request: pb.GetPurchaseRequest, context: Any) -> pb.GetPurchaseResponse:
        """A purchase whose id tells who answers."""
        return pb.GetPurchaseResponse(purchase=pb.Purchase(purchase_id=self._listen))


async def _serve(listen: str) -> None:
    replica = _Replica(listen)  # type: ignore[abstract]
    register = (_NAME, lambda server: pb_grpc.add_PurchaseServiceServicer_to_server(replica, server))
    async with GrpcServer(listen, [register]) as server:
        await server.serving()
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
