"""A Purchase Service that never answers looks well from outside, and counts what it is sent."""

import asyncio

import grpc
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.measures.stuck_purchases import stuck_purchases


async def test_a_stuck_service_is_healthy_and_keeps_callers_waiting() -> None:
    wishes = [purchase.CreatePurchaseRequest(request_id=f"r{number}") for number in range(3)]
    async with stuck_purchases() as (target, stuck), grpc.aio.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = PurchaseServiceStub(channel).BatchCreatePurchases(purchase.BatchCreatePurchasesRequest(requests=wishes))
        async with asyncio.timeout(10):
            while stuck.taken < 3:
                await asyncio.sleep(0.01)
        assert not call.done()
        call.cancel()
    assert stuck.taken == 3
