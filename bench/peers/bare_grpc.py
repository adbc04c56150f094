"""Limit: a grpc.aio server whose CreatePurchase answers a constant: `python -m bench.peers.bare_grpc PORT`."""

import sys
from typing import Any

import grpc
import uvloop
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc


class _Constant(pb_grpc.PurchaseServiceServicer):
    async def CreatePurchase(self, request: pb.CreatePurchaseRequest, context: Any) -> pb.CreatePurchaseResponse:
        purchase = pb.Purchase(
            purchase_id="00000000-0000-5000-8000-000000000000",
            user_id=request.user_id,
            sale_id=request.sale_id,
            request_id=request.request_id,
            quantity=request.quantity,
            state=pb.PURCHASE_STATE_RESERVED,
        )
        return pb.CreatePurchaseResponse(purchase=purchase)


async def serve(port: int) -> None:
    """Serves until it is ended."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_PurchaseServiceServicer_to_server(_Constant(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
