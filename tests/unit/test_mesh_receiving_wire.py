"""That a server which reads requests by itself is, to its clients, a server like any other."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesh.channels import open_channel
from mesh.metrics import Metrics
from mesh.peer_limits import MESSAGE_BYTES_MAX
from mesh.server import GrpcServer
from tests.support.attacked import until
from tests.support.http2_peer import END_HEADERS, HEADERS, RST_STREAM, Http2Peer, call_headers, frame, http2_peer

SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"].full_name


class Echo(pb_grpc.InventoryServiceServicer):
    """Says what it was asked."""

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        return pb.GetSaleResponse(sale=pb.Sale(sale_id=request.sale_id))

    async def WatchStock(self, request: pb.WatchStockRequest, context: Any) -> AsyncIterator[pb.WatchStockResponse]:
        for number in range(3):
            yield pb.WatchStockResponse(stock=pb.Stock(sale_id=request.sale_id, available=number))


@asynccontextmanager
async def served(metrics: Metrics | None = None) -> AsyncIterator[tuple[grpc.aio.Channel, int]]:
    echo = Echo()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(echo, server))
    async with GrpcServer("127.0.0.1:0", [register], metrics=metrics, grace_s=0.2) as server:
        await server.serving()
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel, server.port


async def test_one_request_and_one_answer() -> None:
    async with served() as (channel, _):
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        for text in ("", "a", "x" * 100_000):
            answer = await stub.GetSale(pb.GetSaleRequest(sale_id=text), timeout=5)
            assert answer.sale.sale_id == text


async def test_one_request_and_many_answers() -> None:
    async with served() as (channel, _):
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        call = stub.WatchStock(pb.WatchStockRequest(sale_id="s"), timeout=5)
        assert [(each.stock.sale_id, each.stock.available) async for each in call] == [("s", 0), ("s", 1), ("s", 2)]


async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    async with served() as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=5)  # type: ignore[arg-type]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_answered_and_watched() -> None:
    async with served() as (channel, _):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        question = health_pb2.HealthCheckRequest(service=SERVICE)
        assert (await stub.Check(question, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(question, timeout=5)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_converses() -> None:
    async with served() as (channel, _):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo(timeout=5)
        for _ in range(2):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {each.name for each in (await call.read()).list_services_response.service}
            assert SERVICE in names
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_request_as_large_as_may_be_is_taken_and_not_a_byte_more() -> None:
    async with served() as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/GetSale")
        fits = pb.GetSaleRequest(sale_id="x" * (MESSAGE_BYTES_MAX - 4)).SerializeToString()
        assert len(fits) == MESSAGE_BYTES_MAX
        await call(fits, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(fits + b"\0", timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_compression_is_refused_by_its_name() -> None:
    async with (
        served() as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as channel,
    ):
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSale(pb.GetSaleRequest(sale_id="x" * 10_000), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def begun(peer: Http2Peer, calls: int) -> list[int]:
    """Begins calls, and sends no request."""
    streams = [peer.new_stream() for _ in range(calls)]
    for stream in streams:
        await peer.send(frame(HEADERS, END_HEADERS, stream, call_headers(f"/{SERVICE}/GetSale")))
    return streams


async def test_callers_who_leave_before_their_request_are_refused_nothing(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    async with served(metrics) as (_, port), http2_peer(port) as peer:
        streams = await begun(peer, 20)
        await until(lambda: "flashsale_requests_incomplete 20.0" in metrics.text().decode())
        for stream in streams:
            await peer.send(frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
        await until(lambda: "flashsale_requests_incomplete 0.0" in metrics.text().decode())
        await asyncio.sleep(0.1)
        assert "flashsale_requests_refused_total{" not in metrics.text().decode()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_server_ends_in_time_though_requests_have_not_come(caplog: pytest.LogCaptureFixture) -> None:
    metrics, loop = Metrics(), asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        server = served(metrics)
        _, port = await server.__aenter__()
        peer = await stack.enter_async_context(http2_peer(port))
        await begun(peer, 20)
        await until(lambda: "flashsale_requests_incomplete 20.0" in metrics.text().decode())
        began = loop.time()
        await server.__aexit__(None, None, None)
        assert loop.time() - began < 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
