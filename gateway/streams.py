"""The stock of a sale as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
from typing import Any

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from granian.rsgi import HTTPProtocol, ProtocolClosed  # type: ignore[attr-defined]

from gateway.following import Followed, StockFollowers
from gateway.reading import stock_json
from mesh.errors import DomainError

_HEADERS = [
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store"),
    # Tells nginx in front of us to pass events on as they come.
    ("x-accel-buffering", "no"),
]
#: Shortest time between two events, s, and longest until a comment shows that the stream lives.
_EVENT_S_MIN, _HEARTBEAT_S = 0.1, 5.0
#: How long the first reading is waited for, s.
_FIRST_S_MAX = 1.0


class StockStreams:
    """Streams to at most ``streams_max`` viewers, each for at most ``life_s`` seconds; browsers reconnect.

    The life is bounded because the HTTP server takes whatever it is given for a reader who does not read: at ten
    events of 150 bytes a second a stalled viewer costs 90 KB in a minute, and no more.
    """

    def __init__(self, followers: StockFollowers, draining: asyncio.Event, streams_max: int, life_s: float) -> None:
        self._followers = followers
        self._draining = draining
        self._streams_max = streams_max
        self._life_s = life_s
        self.open = 0

    async def serve(self, sale_id: str, protocol: HTTPProtocol) -> None:
        """Sends the reading whenever it changes. Raises, before anything is sent, OVERLOADED, SALE_NOT_FOUND or
        UNAVAILABLE."""
        if self._draining.is_set():
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        if self.open >= self._streams_max:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, "too many streams at once")
        self.open += 1
        try:
            followed = await self._ready(sale_id)
            followed.viewers += 1
            try:
                await self._stream(followed, protocol)
            finally:
                followed.viewers -= 1
        finally:
            self.open -= 1

    async def _ready(self, sale_id: str) -> Followed:
        loop = asyncio.get_running_loop()
        followed = None
        if not self._followers.is_missing(sale_id, loop.time()):
            followed = self._followers.follow(sale_id, loop.time(), anonymous=True)
            if followed is None:
                raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, "too many sales are being watched")
            try:
                async with asyncio.timeout(_FIRST_S_MAX):
                    await followed.settled.wait()
            except TimeoutError as error:
                raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "stock cannot be read now") from error
        if followed is None or followed.missing:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND, metadata={"sale_id": sale_id})
        if followed.stock.fresh_stock(loop.time()) is None:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "stock cannot be read now")
        return followed

    async def _stream(self, followed: Followed, protocol: HTTPProtocol) -> None:
        loop = asyncio.get_running_loop()
        transport = protocol.response_stream(200, _HEADERS)
        gone: asyncio.Future[Any] = asyncio.ensure_future(protocol.client_disconnect())
        draining = asyncio.ensure_future(self._draining.wait())
        shown, ends_at = -1, loop.time() + self._life_s
        try:
            await transport.send_bytes(b"retry: 1000\n\n")
            while not (gone.done() or draining.done()) and loop.time() < ends_at:
                if followed.stock.version != shown:
                    shown = followed.stock.version
                    await transport.send_bytes(_event(followed))
                    followed.asked_at = loop.time()
                    await asyncio.sleep(_EVENT_S_MIN)
                    continue
                changed = asyncio.ensure_future(followed.changed())
                waited_for = {gone, draining, changed}
                most_s = min(_HEARTBEAT_S, ends_at - loop.time())
                await asyncio.wait(waited_for, timeout=max(0.0, most_s), return_when=asyncio.FIRST_COMPLETED)
                if not changed.done():
                    changed.cancel()
                    await transport.send_bytes(b": still here\n\n")
        except ProtocolClosed:
            return
        finally:
            gone.cancel()
            draining.cancel()


def _event(followed: Followed) -> bytes:
    stock = followed.stock.stock
    if stock is None:
        return b'event: unavailable\ndata: {"reason":"STOCK_RECALIBRATING"}\n\n'
    return b"event: stock\ndata: " + msgspec.json.encode(stock_json(stock)) + b"\n\n"
