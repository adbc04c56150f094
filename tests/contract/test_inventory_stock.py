"""InventoryService, stock: readings, and streams whose fingerprints are of the same moment as the reading."""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh.errors import from_rpc_error
from mesh.identity import fingerprint
from tests.support.inventory_rig import OK, InventoryRig, inventory_rig, item, second_rig
from tests.support.servers import Servers


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


class Follower:
    """Reads a stream and keeps what it says, as the gateway does."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.stock: pb.Stock | None = None
        self.known: set[int] = set()
        self.messages: list[tuple[float, pb.WatchStockResponse]] = []

    async def next(self) -> pb.WatchStockResponse:
        read = await asyncio.wait_for(self.call.read(), 5)
        assert read is not grpc.aio.EOF
        message: pb.WatchStockResponse = read
        self.messages.append((time.monotonic(), message))
        if message.fingerprints_reset:
            self.known.clear()
        assert self.known.isdisjoint(message.fingerprints_added)
        assert self.known.issuperset(message.fingerprints_removed)
        self.known |= set(message.fingerprints_added)
        self.known -= set(message.fingerprints_removed)
        self.stock = message.stock if message.HasField("stock") else None
        return message

    async def until(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        """Reads on until the condition holds."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, (self.stock, len(self.known))
            await self.next()

    def available(self, units: int) -> Callable[[], bool]:
        """Whether the last reading says so."""
        return lambda: self.stock is not None and self.stock.available == units


@asynccontextmanager
async def following(rig: InventoryRig, sale_id: str, *, fingerprints: bool = True) -> AsyncIterator[Follower]:
    call = rig.inventory.WatchStock(pb.WatchStockRequest(sale_id=sale_id, include_fingerprints=fingerprints))
    try:
        yield Follower(call)
    finally:
        call.cancel()


async def test_the_first_message_has_the_whole_set(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    wishes = [item(sale_id, f"u{number}", f"request {number}") for number in range(4)]
    assert await rig.reserve(wishes) == [OK] * 4
    await rig.confirm([wishes[0].reservation_id])
    await rig.release([wishes[1].reservation_id])
    async with following(rig, sale_id) as follower:
        first = await follower.next()
        assert first.fingerprints_reset
        await follower.until(follower.available(7))
        assert follower.known == {fingerprint(f"request {number}") for number in (0, 2, 3)}
        assert follower.stock is not None
        assert (follower.stock.reserved, follower.stock.sold, follower.stock.open) == (2, 1, True)


async def test_a_stream_is_never_silent_for_a_quarter_of_a_second(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    async with following(rig, sale_id, fingerprints=False) as follower:
        began = time.monotonic()
        while time.monotonic() - began < 2:
            await follower.next()
        times = [at for at, _ in follower.messages]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 0.25
        assert len(times) <= 2 * 20 + 1
        assert not any(message.fingerprints_added for _, message in follower.messages)


async def test_a_reading_of_zero_comes_with_everybody_who_holds_a_unit(rig: InventoryRig) -> None:
    total = 3_000
    sale_id = await rig.open_sale(total)
    granted: set[int] = set()

    async def buy(first: int) -> None:
        for start in range(first, 4_000, 800):
            wishes = [item(sale_id, f"u{number}", f"z{number}") for number in range(start, start + 100)]
            for wish, reason in zip(wishes, await rig.reserve(wishes), strict=True):
                if reason == OK:
                    granted.add(fingerprint(wish.request_id))

    async with following(rig, sale_id) as follower:
        await follower.until(follower.available(total))
        buying = asyncio.gather(*(buy(first) for first in range(0, 800, 100)))
        await follower.until(follower.available(0), within_s=15)
        at_zero = set(follower.known)
        await buying
    assert len(at_zero) == total
    assert at_zero == granted


async def test_stock_that_returns_is_told_soon_and_its_holder_is_forgotten(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    wish = item(sale_id, "a", "only")
    async with following(rig, sale_id) as follower:
        await follower.until(follower.available(1))
        assert await rig.reserve([wish]) == [OK]
        await follower.until(follower.available(0))
        assert follower.known == {fingerprint("only")}
        began = time.monotonic()
        await rig.release([wish.reservation_id])
        await follower.until(follower.available(1))
        assert time.monotonic() - began < 0.3
        assert follower.known == set()


async def test_a_change_made_by_another_process_is_seen_soon(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    wish = item(sale_id, "a")
    async with second_rig(rig.settings) as other, following(rig, sale_id) as follower:
        await follower.until(follower.available(1))
        began = time.monotonic()
        assert await other.reserve([wish]) == [OK]
        await follower.until(follower.available(0))
        await other.release([wish.reservation_id])
        await follower.until(follower.available(1))
        assert time.monotonic() - began < 0.6


async def test_requests_of_two_users_with_one_request_id_share_a_fingerprint(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    first, second = item(sale_id, "a", "same"), item(sale_id, "b", "same")
    async with following(rig, sale_id) as follower:
        assert await rig.reserve([first, second]) == [OK, OK]
        await follower.until(follower.available(3))
        assert follower.known == {fingerprint("same")}
        await rig.release([first.reservation_id])
        await follower.until(follower.available(4))
        assert follower.known == {fingerprint("same")}
        await rig.release([second.reservation_id])
        await follower.until(follower.available(5))
        assert follower.known == set()


async def test_recalibration_and_pause_keep_the_set(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    assert await rig.reserve([item(sale_id, "a", "kept")]) == [OK]
    async with following(rig, sale_id) as follower:
        await follower.until(follower.available(4))
        epoch = (await rig.recalibrate(sale_id)).epoch
        await follower.until(lambda: follower.stock is not None and follower.stock.epoch == epoch)
        assert follower.known == {fingerprint("kept")}
        await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id))
        await follower.until(lambda: follower.stock is not None and not follower.stock.open)
        assert follower.known == {fingerprint("kept")}


async def test_a_slow_reader_ends_up_with_the_right_set(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(30_000)
    async with following(rig, sale_id) as follower:
        await follower.until(follower.available(30_000))

        async def buy(first: int) -> None:
            for start in range(first, 24_000, 4_000):
                assert await rig.reserve([item(sale_id, f"u{n}", f"s{n}") for n in range(start, start + 1_000)])

        # Nobody reads meanwhile; gRPC's flow control holds the messages back.
        await asyncio.gather(*(buy(first) for first in range(0, 4_000, 1_000)))
        await follower.until(follower.available(6_000), within_s=10)
        assert follower.known == {fingerprint(f"s{n}") for n in range(24_000)}


async def test_a_stream_ends_with_unavailable_when_the_service_drains(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    async with second_rig(rig.settings) as other:
        call = other.inventory.WatchStock(pb.WatchStockRequest(sale_id=sale_id))
        await call.read()
        reading = asyncio.ensure_future(_read_to_the_end(call))
    began = time.monotonic()
    assert await reading == "UNAVAILABLE"
    assert time.monotonic() - began < 1


async def _read_to_the_end(call: Any) -> str:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason_name
    return ""


async def test_streams_beyond_the_limit_are_refused(servers: Servers, rig: InventoryRig) -> None:
    async with inventory_rig(servers, watchers_max=1) as small:
        sale_id = await small.open_sale(5)
        async with following(small, sale_id) as first:
            await first.next()
            async with following(small, sale_id) as second:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await second.next()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(caught.value).retry_after_ms > 0


async def test_watching_an_unknown_sale_is_refused(rig: InventoryRig) -> None:
    async with following(rig, str(uuid.uuid4())) as follower:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await follower.next()
    assert from_rpc_error(caught.value).reason_name == "SALE_NOT_FOUND"


async def test_gate_and_book_agree_and_the_book_would_show_a_lost_share_number(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(10)
    wishes = [item(sale_id, f"u{number}", quantity=2) for number in range(3)]
    assert await rig.reserve(wishes) == [OK] * 3
    await rig.confirm([wishes[0].reservation_id, wishes[1].reservation_id])
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (4, 2, 4)
    await rig.sql("UPDATE share_numbers SET reservation_id = NULL WHERE sale_id = %s AND share_number = 1", sale_id)
    request = pb.GetStockRequest(sale_id=sale_id, source=pb.StockSource.STOCK_SOURCE_BOOK)
    stock = (await rig.inventory.GetStock(request)).stock
    assert stock.available + stock.reserved + stock.sold == stock.total - 1
