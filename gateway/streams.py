"""The stock of a sale as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import contextlib
from collections import deque
from typing import Any

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
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
#: How often viewers are looked through, s: also the shortest time between two events of one.
_ROUND_S = 0.1
#: A viewer who was sent nothing for so long is sent a comment, which shows that the stream lives, s.
_HEARTBEAT_S = 10.0
#: How long the first reading is waited for, s.
_FIRST_S_MAX = 1.0
_COMMENT = b": still here\n\n"


class _Viewer:
    """One stream."""

    __slots__ = ("ended", "followed", "sent_at", "shown", "transport")

    def __init__(self, followed: Followed, transport: Any, ended: "asyncio.Future[None]") -> None:
        self.followed = followed
        #: None once it has ended.
        self.transport = transport
        self.ended = ended
        #: Version of the reading that it was sent last, and when it was sent anything, on the loop's clock.
        self.shown = -1
        self.sent_at = 0.0

    def end(self, *_: object) -> None:
        """Ends the stream."""
        if not self.ended.done():
            self.ended.set_result(None)


class StockStreams:
    """Streams to at most ``streams_max`` viewers, each for at most ``life_s`` seconds; browsers reconnect.

    All together are sent at most ``pushes_per_s`` events a second, in turn: the more viewers there are, the more
    changes each is spared, and the sale is never slower for them.

    The life is bounded because the HTTP server takes whatever it is given for a reader who does not read: at ten
    events of 150 bytes a second a stalled viewer costs 90 KB in a minute, and no more.
    """

    def __init__(
        self,
        followers: StockFollowers,
        draining: asyncio.Event,
        *,
        streams_max: int,
        life_s: float,
        pushes_per_s: float,
    ) -> None:
        self._followers = followers
        self._draining = draining
        self._streams_max = streams_max
        self._life_s = life_s
        self._pushes_per_s = pushes_per_s
        #: Those who were sent something longest ago first.
        self._viewers: deque[_Viewer] = deque()
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
        viewer = _Viewer(followed, protocol.response_stream(200, _HEADERS), loop.create_future())
        gone: asyncio.Future[Any] = asyncio.ensure_future(protocol.client_disconnect())
        gone.add_done_callback(viewer.end)
        timer = loop.call_later(self._life_s, viewer.end)
        try:
            await viewer.transport.send_bytes(b"retry: 1000\n\n")
            await _send(viewer, loop.time())
            self._viewers.append(viewer)
            if self._draining.is_set():
                return
            await viewer.ended
        except ProtocolClosed:
            return
        finally:
            timer.cancel()
            gone.cancel()
            viewer.end()
            # The response ends when nobody refers to it any more.
            viewer.transport = None

    async def push(self) -> None:
        """Sends changes to viewers until the gateway drains; run in the background."""
        loop = asyncio.get_running_loop()
        last, budget = loop.time(), 0.0
        while not self._draining.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._draining.wait()
            now = loop.time()
            # What is not used up is not saved: it would be spent at once, in the middle of something.
            budget = min(budget + (now - last) * self._pushes_per_s, self._pushes_per_s * _ROUND_S * 2)
            last = now
            budget -= await self._round(now, int(budget))
        for viewer in self._viewers:
            viewer.end()

    async def _round(self, now: float, most: int) -> int:
        """Looks at each viewer once and sends to at most ``most`` of them; to how many."""
        sent = 0
        for _ in range(len(self._viewers)):
            if sent >= most:
                break
            viewer = self._viewers.popleft()
            if viewer.ended.done():
                continue
            self._viewers.append(viewer)
            try:
                if viewer.shown != viewer.followed.stock.version:
                    await _send(viewer, now)
                elif now - viewer.sent_at > _HEARTBEAT_S:
                    await viewer.transport.send_bytes(_COMMENT)
                    viewer.sent_at = now
                else:
                    continue
            except ProtocolClosed:
                viewer.end()
            sent += 1
        return sent


async def _send(viewer: _Viewer, now: float) -> None:
    """Sends the reading as it is. Raises ProtocolClosed."""
    viewer.shown, viewer.sent_at = viewer.followed.stock.version, now
    viewer.followed.asked_at = now
    await viewer.transport.send_bytes(_event(viewer.followed.stock.stock))


def _event(stock: inventory.Stock | None) -> bytes:
    if stock is None:
        return b'event: unavailable\ndata: {"reason":"STOCK_RECALIBRATING"}\n\n'
    return b"event: stock\ndata: " + msgspec.json.encode(stock_json(stock)) + b"\n\n"
