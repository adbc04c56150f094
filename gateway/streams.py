"""The stock of a sale as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import contextlib
import math
from collections import deque
from typing import Any

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from granian.rsgi import HTTPProtocol, ProtocolClosed  # type: ignore[attr-defined]

from gateway.following import Followed, StockFollowers
from gateway.json_forms import stock_json
from mesh.errors import DomainError

_HEADERS = [
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store"),
    # Tells nginx in front of us to pass events on as they come.
    ("x-accel-buffering", "no"),
]
#: Time between two events of one viewer, s, and by how much it may be less after one that came late: readings come at
#: the same pace, and without that each would wait for as long as the latest one so far had been late.
_EVENT_S, _LATE_S = 0.05, 0.04
#: Shortest time between two looks through the viewers, s, and what it is for each of them, up to the time between two
#: events: a look costs 0.2 us a viewer, so that looking takes 2 % of a processor at most, however many sales change.
_LOOK_S_MIN, _LOOK_S_EACH = 0.005, 10e-6
#: And the longest: by then somebody may be due a sign of life.
_IDLE_S = 0.25
#: Events of so many seconds that were not sent may be sent later. More would be spent at once, at a busy moment.
_SAVED_S = 0.2
#: A viewer who was sent nothing for so long is sent a comment, which shows that the stream lives, s.
_HEARTBEAT_S = 10.0
#: How long the first reading is waited for, s.
_FIRST_S_MAX = 1.0
#: How long a viewer who comes back waits for a reading that is no older than the last one it saw, s.
_RESUME_S_MAX = 0.5
_COMMENT = b": still here\n\n"


class _Viewer:
    """One stream."""

    __slots__ = ("due_at", "ended", "followed", "sent_at", "shown", "transport")

    def __init__(self, followed: Followed, transport: Any, ended: "asyncio.Future[None]") -> None:
        self.followed = followed
        #: None once it has ended.
        self.transport = transport
        self.ended = ended
        #: Version of the reading that it was sent last, and when it was sent anything, on the loop's clock.
        self.shown = -1
        self.sent_at = 0.0
        #: When it may be told of the next change.
        self.due_at = 0.0

    def end(self, *_: object) -> None:
        """Ends the stream."""
        if not self.ended.done():
            self.ended.set_result(None)


class StockStreams:
    """Streams to at most ``streams_max`` viewers, each for at most ``life_s`` seconds; browsers reconnect.

    All together are sent at most ``pushes_per_s`` events a second, in turn: the more viewers there are, the more
    changes each is spared, and the sale is never slower for them.

    A change is sent as soon as it is heard of, unless this viewer was sent another in the 50 ms before, so that it is
    sent at most twenty a second; where thousands look on, up to 50 ms later. An event's id says which reading it is; a
    viewer who reconnects, to whichever gateway, is told the present reading first, and none that is older than the last
    one it saw.

    The life is bounded because the HTTP server takes whatever it is given for a reader who does not read: at twenty
    events of 170 bytes a second a stalled viewer costs 200 KB in a minute, and no more.
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

    async def serve(self, sale_id: str, protocol: HTTPProtocol, last_id: str | None = None) -> None:
        """Sends the reading whenever it changes. ``last_id`` is the id of the last event that the viewer saw before.
        Raises, before anything is sent, OVERLOADED, SALE_NOT_FOUND or UNAVAILABLE."""
        if self._draining.is_set():
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        if self.open >= self._streams_max:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, "too many streams at once")
        self.open += 1
        try:
            followed = await self._ready(sale_id)
            followed.viewers += 1
            try:
                await _caught_up(followed, last_id)
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
            if viewer.shown != followed.stock.version:
                # Changed while that was sent, and whoever was told of it then did not know this viewer yet.
                self._followers.heard.set()
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
        last, budget, due_at = loop.time(), 0.0, math.inf
        while not self._draining.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(loop.time() + _IDLE_S, due_at)):
                    await self._followers.heard.wait()
            look_s = min(max(_LOOK_S_MIN, len(self._viewers) * _LOOK_S_EACH), _EVENT_S)
            await asyncio.sleep(max(0.0, last + look_s - loop.time()))
            self._followers.heard.clear()
            now = loop.time()
            budget = min(budget + (now - last) * self._pushes_per_s, self._pushes_per_s * _SAVED_S)
            last, most = now, int(budget)
            sent, due_at = await self._round(now, most)
            budget -= sent
            if sent >= most:
                # Whoever the budget did not reach is due at the next look, heard of anything or not.
                due_at = now
        for viewer in self._viewers:
            viewer.end()

    async def _round(self, now: float, most: int) -> tuple[int, float]:
        """Looks at each viewer once and sends to at most ``most`` of them. To how many, and when the first is due of
        those who cannot be told yet, because they were told of an earlier change just now."""
        sent, due_at = 0, math.inf
        for _ in range(len(self._viewers)):
            if sent >= most:
                break
            viewer = self._viewers.popleft()
            if viewer.ended.done():
                continue
            self._viewers.append(viewer)
            try:
                if viewer.shown != viewer.followed.stock.version:
                    if now < viewer.due_at:
                        due_at = min(due_at, viewer.due_at)
                        continue
                    await _send(viewer, now)
                elif now - viewer.sent_at > _HEARTBEAT_S:
                    await viewer.transport.send_bytes(_COMMENT)
                    viewer.sent_at = now
                else:
                    continue
            except ProtocolClosed:
                viewer.end()
            sent += 1
        return sent, due_at


async def _send(viewer: _Viewer, now: float) -> None:
    """Sends the reading as it is. Raises ProtocolClosed."""
    viewer.shown, viewer.sent_at = viewer.followed.stock.version, now
    viewer.due_at = max(viewer.due_at, now - _LATE_S) + _EVENT_S
    viewer.followed.asked_at = now
    await viewer.transport.send_bytes(_event(viewer.followed.stock.stock))


def _event(stock: inventory.Stock | None) -> bytes:
    if stock is None:
        return b'event: unavailable\ndata: {"reason":"STOCK_RECALIBRATING"}\n\n'
    head = f"event: stock\nid: {stock.epoch}.{stock.holder_changes}\ndata: "
    return head.encode() + msgspec.json.encode(stock_json(stock)) + b"\n\n"


def _reading_of(event_id: str) -> tuple[int, int] | None:
    """Epoch and changes of the reading that an event id names; None for what is no id of ours."""
    epoch, _, changes = event_id.partition(".")
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in (epoch, changes)):
        return None
    return int(epoch), int(changes)


async def _caught_up(followed: Followed, last_id: str | None) -> None:
    """Waits, not for long, until the reading is no older than the one that the event id names: another gateway, which
    the viewer had before, may have heard of more."""
    seen = _reading_of(last_id) if last_id else None
    if seen is None:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_RESUME_S_MAX):
            while (stock := followed.stock.stock) is not None and (stock.epoch, stock.holder_changes) < seen:
                await followed.changed()
