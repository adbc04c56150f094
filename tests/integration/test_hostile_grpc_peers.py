"""What a hostile peer can do to a gRPC server by its connection: memory stays bounded, others are served as if it were
not there.

Every attack is on a server of the test's own, on loopback, bounded in number and time.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc

from mesh.channels import open_channel
from mesh.peer_limits import METADATA_BYTES_MAX
from mesh.server import GrpcServer
from tests.support.attacked import GET_SALE, UNAFFECTED_S, attacked, code_of, until
from tests.support.certificates import Peers
from tests.support.http2_peer import (
    CONTINUATION,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    HEADERS,
    PING,
    PREFACE,
    REFUSED_STREAM,
    RST_STREAM,
    call_headers,
    frame,
    header_block,
    http2_peer,
)

RESOURCE_EXHAUSTED = 8


async def test_metadata_above_the_limit_is_refused() -> None:
    async with attacked() as (service, _, _met):
        options = [("grpc.max_metadata_size", 16 * METADATA_BYTES_MAX)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}", options=options) as channel:
            stub: Any = pb_grpc.InventoryServiceStub(channel)
            await stub.GetSale(pb.GetSaleRequest(), metadata=[("x", "y" * 12_000)], timeout=10)
            for size in (METADATA_BYTES_MAX, 8 * METADATA_BYTES_MAX):
                call = stub.GetSale(pb.GetSaleRequest(), metadata=[("x", "y" * size)], timeout=10)
                assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_headers_without_an_end_cost_no_memory() -> None:
    async with attacked() as (service, _, met):
        before = service.memory_mb
        more = frame(CONTINUATION, 0, 1, header_block([("x-more", "y" * 15_000)]))
        async with http2_peer(service.port) as peer:
            await peer.greeted()
            await peer.send(frame(HEADERS, 0, peer.new_stream(), call_headers(GET_SALE)))
            for _ in range(5_000):
                if not await peer.send(more):
                    break
            await until(lambda: peer.statuses == [RESOURCE_EXHAUSTED])
            assert service.memory_mb < before + 40, "75 MB of headers were kept"
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_a_flood_of_connections_is_cut_off_and_callers_go_on() -> None:
    async with attacked(connections_max=100) as (service, stub, met):
        before = service.memory_mb
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(http2_peer(service.port)) for _ in range(800)]
            await until(lambda: sum(peer.closed.is_set() for peer in peers) >= 700)
            await stub.GetSale(pb.GetSaleRequest(), timeout=5)
            assert service.memory_mb < before + 60
        # The places are free again for whoever comes next.
        async with open_channel(f"127.0.0.1:{service.port}") as channel:
            await pb_grpc.InventoryServiceStub(channel).GetSale(pb.GetSaleRequest(), timeout=10, wait_for_ready=True)
    met.assert_unaffected(within_s=UNAFFECTED_S)


#: The record that a ClientHello begins with, without the most of it.
HALF_A_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


async def test_connections_that_say_no_hello_are_closed_and_callers_go_on(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    async with (
        attacked() as (service, _, met),
        GrpcServer("127.0.0.1:0", [], transport=peers.transport("inventory"), grace_s=0.1) as over_tls,
        AsyncExitStack() as stack,
    ):
        closed = []
        for port, octets in (
            (service.port, b""),
            (service.port, PREFACE),
            (over_tls.port, b""),
            (over_tls.port, HALF_A_CLIENT_HELLO),
        ):
            peer = await stack.enter_async_context(http2_peer(port, greet=False))
            await peer.send(octets)
            closed.append(peer.closed.wait())
        async with asyncio.timeout(8):
            await asyncio.gather(*closed)
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_rapid_resets_leave_others_unaffected() -> None:
    async with attacked() as (service, _, met):
        before = service.memory_mb
        headers, reset = call_headers(GET_SALE), (8).to_bytes(4, "big")
        async with http2_peer(service.port) as peer:
            for _ in range(200):
                streams = [peer.new_stream() for _ in range(100)]
                burst = (
                    frame(HEADERS, END_HEADERS, each, headers) + frame(RST_STREAM, 0, each, reset) for each in streams
                )
                if not await peer.send(b"".join(burst)):
                    break
            await peer.settled()
        assert service.memory_mb < before + 100
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_calls_beyond_those_of_a_connection_are_refused() -> None:
    async with attacked(streams_max=50, wait_s=3.0) as (service, _, met), http2_peer(service.port) as peer:
        for _ in range(500):
            await peer.send(frame(HEADERS, END_HEADERS, peer.new_stream(), call_headers(GET_SALE)))
        await until(lambda: peer.resets[REFUSED_STREAM] + peer.resets[ENHANCE_YOUR_CALM] == 450)
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_whoever_pings_on_and_on_loses_the_connection() -> None:
    async with attacked() as (service, _, met), http2_peer(service.port) as peer:
        for _ in range(200):
            if not await peer.send(frame(PING, 0, 0, b"12345678")):
                break
            await asyncio.sleep(0.01)
        assert peer.closed.is_set()
        assert peer.goaway.endswith(b"too_many_pings")
    met.assert_unaffected(within_s=UNAFFECTED_S)
