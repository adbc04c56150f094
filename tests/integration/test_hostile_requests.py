"""What a hostile peer can do to a gRPC server by the requests it sends, or begins to send: memory stays bounded, others
are served as if it were not there.

Every attack is on a server of the test's own, on loopback, bounded in number and time.
"""

import asyncio
import contextlib
import zlib
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesh.channels import open_channel
from mesh.peer_limits import MESSAGE_BYTES_MAX
from tests.support.attacked import GET_SALE, UNAFFECTED_S, attacked, code_of, until
from tests.support.http2_peer import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    HEADERS,
    PREFACE,
    SETTINGS,
    Http2Peer,
    call_headers,
    frame,
    header_block,
    http2_peer,
    message,
)
from tests.support.memory import forget_peak, memory_mb, memory_peak_mb
from tests.support.probe_service import SERVICE, probe_service

INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 3, 4, 8, 12


async def test_a_message_above_the_limit_is_refused_unread() -> None:
    async with attacked() as (service, _, _met):
        before = service.memory_mb
        async with http2_peer(service.port) as peer:
            stream = peer.new_stream()
            # Says that 4 GB will come.
            announced = b"\0\xff\xff\xff\xff"
            await peer.send(
                frame(HEADERS, END_HEADERS, stream, call_headers(GET_SALE)) + frame(DATA, 0, stream, announced)
            )
            await until(lambda: peer.statuses == [RESOURCE_EXHAUSTED])
        assert service.memory_mb < before + 20


async def test_the_limit_is_what_it_is_said_to_be() -> None:
    async with probe_service() as service, grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        fits = pb.GetSaleRequest(sale_id="x" * (MESSAGE_BYTES_MAX - 4))
        assert fits.ByteSize() == MESSAGE_BYTES_MAX
        await stub.GetSale(fits, timeout=10)
        above = pb.GetSaleRequest(sale_id="x" * (MESSAGE_BYTES_MAX - 3))
        assert await code_of(stub.GetSale(above, timeout=10)) is grpc.StatusCode.RESOURCE_EXHAUSTED


@cache
def bomb() -> bytes:
    """A compressed message that fits into a stream's first window and unpacks to 50 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = message(packer.compress(bytes(50 * 1024 * 1024)) + packer.flush(), compressed=True)
    assert len(packed) < 60_000
    return packed


def bomb_frames(stream: int) -> bytes:
    """All of it."""
    parts = [bomb()[start : start + 15_000] for start in range(0, len(bomb()), 15_000)]
    return b"".join(frame(DATA, 0, stream, each) for each in parts)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_a_compressed_call_is_refused_and_never_unpacked(algorithm: str) -> None:
    bomb()
    async with attacked() as (service, _, met):
        before = service.memory_mb
        for _ in range(5):
            async with http2_peer(service.port) as peer:
                stream = peer.new_stream()
                headers = call_headers(GET_SALE, ("grpc-encoding", algorithm))
                await peer.send(frame(HEADERS, END_HEADERS, stream, headers) + bomb_frames(stream))
                await until(lambda peer=peer: peer.statuses == [UNIMPLEMENTED])  # type: ignore[misc]
        assert service.memory_peak_mb < before + 40
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def _answer_with_a_bomb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one connection until it is closed: answers the first call with a bomb, asked for or not."""
    writer.write(frame(SETTINGS, 0, 0))
    await reader.readexactly(len(PREFACE))
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == SETTINGS and not head[4] & ACK:
                writer.write(frame(SETTINGS, ACK, 0))
            if head[3] != HEADERS:
                continue
            answer = header_block([(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")])
            writer.write(frame(HEADERS, END_HEADERS, 1, answer))
            writer.write(bomb_frames(1))


async def test_our_own_channels_take_nothing_compressed_either() -> None:
    """A server that answers with a bomb, though nobody said that they take any, harms no client of the mesh."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await _answer_with_a_bomb(reader, writer)

    bomb()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            async with open_channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as channel:
                stub: Any = pb_grpc.InventoryServiceStub(channel)
                forget_peak()
                before = memory_mb()
                # At once, and not when the call's time is over.
                refused = await code_of(stub.GetSale(pb.GetSaleRequest(), timeout=20))
                # grpc refuses the algorithm; where the message is there first, it unpacks up to the limit of an answer
                # and refuses the rest.
                assert refused in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
                assert memory_peak_mb() < before + 20
        finally:
            # grpc keeps the connection of a closed channel for a while.
            for writer in writers:
                writer.close()
                await writer.wait_closed()


class _Unfinished:
    """Calls on one connection, each of which sends as much of a large message as it is let, and never the end."""

    def __init__(self, peer: Http2Peer, calls: int) -> None:
        self._peer = peer
        self._sent = dict.fromkeys((peer.new_stream() for _ in range(calls)), 0)
        self.bytes = 0

    async def begin(self) -> None:
        for stream in self._sent:
            await self._peer.send(frame(HEADERS, END_HEADERS, stream, call_headers(GET_SALE)))

    async def go_on(self) -> None:
        """One round."""
        for stream, sent in self._sent.items():
            room = min(self._peer.room(stream, sent, self.bytes), FRAME_BYTES_MAX, MESSAGE_BYTES_MAX - 100 - sent)
            if room < 100:
                continue
            part = bytes(room) if sent else b"\0" + (MESSAGE_BYTES_MAX - 10).to_bytes(4, "big") + bytes(room - 5)
            await self._peer.send(frame(DATA, 0, stream, part))
            self._sent[stream] += room
            self.bytes += room


async def test_requests_that_never_end_hold_bounded_memory_and_nobody_up() -> None:
    async with attacked(incomplete_max=32, fresh_s=0.1) as (service, _, met):
        before = service.memory_mb
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(http2_peer(service.port)) for _ in range(4)]
            calls = [_Unfinished(peer, 200) for peer in peers]
            for each in calls:
                await each.begin()
            async with asyncio.timeout(30):
                while sum(each.bytes for each in calls) < 40 * 1024 * 1024:
                    for each in calls:
                        await each.go_on()
                    # For the windows to be opened again.
                    await asyncio.sleep(0.002)
            assert service.memory_mb < before + 150
            await until(lambda: sum(peer.statuses.count(RESOURCE_EXHAUSTED) for peer in peers) >= 4 * 200 - 64)
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_a_request_that_trickles_in_is_refused_in_time() -> None:
    async with attacked(wait_s=0.5) as (service, _, met), http2_peer(service.port) as peer:
        stream = peer.new_stream()
        await peer.send(
            frame(HEADERS, END_HEADERS, stream, call_headers(GET_SALE)) + frame(DATA, 0, stream, b"\0\0\0\0\x64")
        )
        for _ in range(50):
            await peer.send(frame(DATA, 0, stream, b"\n"))
            if peer.statuses:
                break
            await asyncio.sleep(0.05)
        assert peer.statuses == [DEADLINE_EXCEEDED]
    met.assert_unaffected(within_s=UNAFFECTED_S)


@pytest.mark.parametrize(
    "octets",
    [b"", message(b"\xff\xff"), message(b"\x0a\x7f"), message(b"\x0a\x02\xc3\x28")],
    ids=["no message", "no protobuf", "cut off", "no UTF-8"],
)
@pytest.mark.parametrize("method", ["GetSale", "WatchStock"])
async def test_a_call_without_a_request_that_can_be_read_is_told_so(octets: bytes, method: str) -> None:
    async with attacked() as (service, stub, _met), http2_peer(service.port) as peer:
        stream = peer.new_stream()
        await peer.send(
            frame(HEADERS, END_HEADERS, stream, call_headers(f"/{SERVICE}/{method}"))
            + frame(DATA, END_STREAM, stream, octets)
        )
        await until(lambda: peer.statuses == [INVALID_ARGUMENT])
        assert b"DecodeError" not in peer.answers
        text = (await stub.OpenSale(pb.OpenSaleRequest(), timeout=10)).sale.display_name
        why = "malformed" if octets else "missing"
        assert f'flashsale_requests_refused_total{{grpc_method="{SERVICE}/{method}",reason="{why}"}} 1.0' in text


async def test_large_requests_under_way_share_a_budget_and_small_ones_need_none() -> None:
    large, small = pb.GetStockRequest(sale_id="x" * 400_000), pb.GetStockRequest()
    async with attacked(bytes_max=1_000_000) as (_, stub, met):
        calls = [asyncio.ensure_future(stub.GetStock(large, timeout=20)) for _ in range(6)]
        answers = await asyncio.gather(*calls, stub.GetStock(small, timeout=20), return_exceptions=True)
        refused = [each.code() for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
        assert isinstance(answers[-1], pb.GetStockResponse)
        # What they took is given back.
        await asyncio.gather(stub.GetStock(large, timeout=20), stub.GetStock(large, timeout=20))
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_answers_that_nobody_takes_hold_bounded_memory_and_leave_others_theirs() -> None:
    async with attacked() as (service, stub, met):
        before = service.memory_mb
        page = pb.ListSalesRequest(page_size=1_000)
        asked = message(page.SerializeToString())
        async with http2_peer(service.port, deaf=True) as peer:
            for _ in range(300):
                stream = peer.new_stream()
                headers = frame(HEADERS, END_HEADERS, stream, call_headers(f"/{SERVICE}/ListSales"))
                await peer.send(headers + frame(DATA, END_STREAM, stream, asked))
            # What is held of each MB is the MB and gRPC's copy of it.
            await until(lambda: peer.statuses.count(RESOURCE_EXHAUSTED) >= 300 - 33, within_s=30)
            assert service.memory_mb < before + 150
            answers = await asyncio.gather(*(stub.ListSales(page, timeout=20) for _ in range(8)))
            assert all(len(each.sales) == 1_000 for each in answers)
        text = (await stub.OpenSale(pb.OpenSaleRequest(), timeout=10)).sale.display_name
        assert f'flashsale_calls_shed_total{{grpc_method="{SERVICE}/ListSales",reason="unread"}}' in text

        async def unread() -> str:
            return str((await stub.OpenSale(pb.OpenSaleRequest(), timeout=10)).sale.display_name)

        async with asyncio.timeout(10):
            while "flashsale_answer_bytes_unread 0.0" not in await unread():
                await asyncio.sleep(0.02)
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_client_streams_are_bounded_in_number_and_time() -> None:
    async with (
        attacked(client_streams_max=2, client_stream_s=1.0) as (service, _, met),
        grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        calls = [stub.ServerReflectionInfo(timeout=20) for _ in range(2)]
        for call in calls:
            await call.write(question)
            assert (await call.read()).HasField("list_services_response")
        third = stub.ServerReflectionInfo(timeout=20)
        assert await code_of(third.read()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            assert await code_of(call.read()) is grpc.StatusCode.DEADLINE_EXCEEDED
        again = stub.ServerReflectionInfo(timeout=20)
        await again.write(question)
        assert (await again.read()).HasField("list_services_response")
        again.cancel()
    met.assert_unaffected(within_s=UNAFFECTED_S)
