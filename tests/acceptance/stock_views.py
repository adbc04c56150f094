"""Those who look at a sale's stock as it changes, over HTTP and over gRPC: what they are told, and when."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import Clients
from mesh.background import end_tasks


class Reading(NamedTuple):
    """A stock as it was told; ``at`` is on the monotonic clock, ``mark`` the event's id, empty over gRPC."""

    at: float
    available: int
    reserved: int
    sold: int
    mark: str


class View:
    """What one stream told, in order."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        #: Messages with a reading, repetitions included.
        self.told = 0
        self._news = asyncio.Event()

    def note(self, stock: tuple[int, int, int], mark: str = "") -> None:
        """Notes a reading that has just come; of repetitions, which show that the stream lives, only the first."""
        self.told += 1
        last = self.readings[-1] if self.readings else None
        if last is None or last[1:4] != stock:
            self.readings.append(Reading(time.monotonic(), *stock, mark))
            self._news.set()

    async def until(self, condition: Callable[[Reading], bool], within_s: float = 10.0) -> Reading:
        """The first reading of all for which the condition holds, waited for if need be."""
        async with asyncio.timeout(within_s):
            seen = 0
            while True:
                for reading in self.readings[seen:]:
                    if condition(reading):
                        return reading
                seen = len(self.readings)
                self._news.clear()
                await self._news.wait()


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readline()).strip(), 16)
    octets = await reader.readexactly(size)
    await reader.readexactly(2)
    return octets


async def _read_events(reader: asyncio.StreamReader, view: View) -> None:
    octets = b""
    while True:
        octets += await _chunk(reader)
        *events, octets = octets.split(b"\n\n")
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
            if fields.get("event") == "stock":
                stock = json.loads(fields["data"])
                view.note((stock["available"], stock["reserved"], stock["sold"]), fields["id"])


@asynccontextmanager
async def _while_reading(read: Coroutine[Any, Any, None], view: View) -> AsyncIterator[View]:
    task = asyncio.get_running_loop().create_task(read)
    try:
        yield view
        assert not task.done(), "the stream ended by itself"
    finally:
        await end_tasks([task])


@asynccontextmanager
async def view_over_http(url: str, sale_id: str, last_id: str = "") -> AsyncIterator[View]:
    """Opens the gateway's stream of events, as a browser that saw the event ``last_id`` before does."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        seen = f"last-event-id: {last_id}\r\n" if last_id else ""
        writer.write(f"GET /v1/sales/{sale_id}/stock/stream HTTP/1.1\r\nhost: {address.netloc}\r\n{seen}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert b"text/event-stream" in head
        view = View()
        async with _while_reading(_read_events(reader, view), view):
            yield view
    finally:
        writer.close()


@asynccontextmanager
async def view_over_grpc(clients: Clients, sale_id: str) -> AsyncIterator[View]:
    """Opens WatchStock."""
    call: Any = clients.inventory.WatchStock(inventory.WatchStockRequest(sale_id=sale_id))
    view = View()

    async def read() -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.HasField("stock"):
                view.note((message.stock.available, message.stock.reserved, message.stock.sold))

    try:
        async with _while_reading(read(), view):
            yield view
    finally:
        call.cancel()
