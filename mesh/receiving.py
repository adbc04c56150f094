"""Taking requests in: bounded in time, number and bytes, whoever sends them.

grpc.aio reads the request of a unary call before any code of ours runs, for as long as it takes: a peer that begins
many calls and ends none had a server hold the largest message for each of them (measured: 400 calls on one connection,
400 MB), and a call without any message was never answered. So the server is given handlers that take a stream of
requests and read its first one by themselves. That is public API, and on the wire nothing differs: whether a client
may send one request or many is known to its own stub only.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from google.protobuf.message import DecodeError

from mesh.errors import DomainError, invalid_argument
from mesh.interceptors import Handler, abort
from mesh.metrics import Counts

#: grpc.aio tells of a caller that has left as of one that has sent nothing, and cancels the call a moment later. An
#: answer to such a call would fail, and grpc.aio lose its memory (grpc#43360): so nobody is answered earlier, s.
_LEFT_S = 0.05


@dataclass(frozen=True)
class ReceivingBounds:
    """How much may be on its way into a server at once.

    ``wait_s``: a request that has not come whole by then is refused. Of more than ``incomplete_max`` incomplete ones
    the oldest is refused if it is older than ``fresh_s``, and in any case beyond ``incomplete_hard_max``: those of
    honest peers are complete within milliseconds, so it is the slow one that gives way. ``bytes_max`` bounds the
    requests that are being worked on, together; those of at most ``small_bytes`` are taken nevertheless, for their
    number is bounded already.
    """

    wait_s: float = 5.0
    incomplete_max: int = 128
    incomplete_hard_max: int = 512
    fresh_s: float = 0.5
    bytes_max: int = 64 * 1024 * 1024
    small_bytes: int = 64 * 1024
    #: Calls in which the client sends a stream (reflection), and how long each may last, seconds.
    client_streams_max: int = 32
    client_stream_s: float = 60.0


class _Reading:
    """A request on its way."""

    __slots__ = ("began", "context", "ended", "name")

    def __init__(self, context: Any, name: str, began: float) -> None:
        self.context = context
        self.name = name
        self.began = began
        self.ended = False


def _refusal(why: str) -> DomainError:
    if why == "late":
        return DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, "the request did not come in time")
    return DomainError(ErrorReason.ERROR_REASON_OVERLOADED)


class ReceiveLayer:
    """Reads the request of each call, and refuses what is late, too much, missing or not to be parsed; outermost, and
    around health and reflection too. ``refused`` counts by method and why."""

    def __init__(self, bounds: ReceivingBounds, refused: Counts) -> None:
        self._bounds = bounds
        self._refused = refused
        #: Oldest first.
        self._readings: dict[_Reading, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._crowd_timer: asyncio.TimerHandle | None = None
        #: Refusals on their way out.
        self._refusals: set[asyncio.Task[None]] = set()
        #: Bytes of the requests that are being worked on.
        self.bytes_under_way = 0
        #: Client-streaming calls under way.
        self.client_streams = 0

    @property
    def incomplete(self) -> int:
        """Requests on their way."""
        return len(self._readings)

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler that reads by itself; grpc takes it for one of a client stream."""
        name = method.removeprefix("/")
        if handler.unary_unary is not None:
            answer, parse = handler.unary_unary, handler.request_deserializer

            async def unary(_: Any, context: Any) -> Any:
                raw = await self._receive(context, name)
                size = len(raw)
                self.bytes_under_way += size
                try:
                    request = await self._parsed(raw, parse, context, name)
                    del raw
                    return await answer(request, context)
                finally:
                    self.bytes_under_way -= size

            return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.unary_stream is not None:
            stream, parse_first = handler.unary_stream, handler.request_deserializer

            async def streaming(_: Any, context: Any) -> AsyncIterator[Any]:
                request = await self._parsed(await self._receive(context, name), parse_first, context, name)
                answers: Any = stream(request, context)
                if inspect.isawaitable(answers):
                    await answers
                    return
                async for each in answers:
                    yield each

            return grpc.stream_stream_rpc_method_handler(streaming, None, handler.response_serializer)
        if handler.stream_stream is not None:
            return self._bounded_stream(handler, name)
        raise TypeError(f"{name}: no service of the mesh takes a stream and answers once")

    def _bounded_stream(self, handler: Handler, name: str) -> Handler:
        converse: Any = handler.stream_stream

        async def conversation(requests: Any, context: Any) -> AsyncIterator[Any]:
            if self.client_streams >= self._bounds.client_streams_max:
                await self._refuse(context, name, "crowded")
            self.client_streams += 1
            try:
                async with asyncio.timeout(self._bounds.client_stream_s):
                    async for each in converse(requests, context):
                        yield each
            except TimeoutError:
                await self._refuse(context, name, "late")
            finally:
                self.client_streams -= 1

        return grpc.stream_stream_rpc_method_handler(
            conversation, handler.request_deserializer, handler.response_serializer
        )

    async def _refuse(self, context: Any, name: str, why: str, error: DomainError | None = None) -> NoReturn:
        self._refused.add((name, why))
        await abort(context, error or _refusal(why))

    async def _receive(self, context: Any, name: str) -> bytes:
        """The request's bytes. Raises AbortError when they do not come, or are too many beside the others'."""
        loop = asyncio.get_running_loop()
        reading = _Reading(context, name, loop.time())
        self._readings[reading] = None
        if self._timer is None:
            self._timer = loop.call_later(self._bounds.wait_s, self._end_late, loop)
        if len(self._readings) > self._bounds.incomplete_max:
            self._make_room(loop)
        try:
            # Once the call has been refused this raises what abort raises.
            raw = await context.read()
        finally:
            reading.ended = True
            self._readings.pop(reading, None)
        if raw is grpc.aio.EOF:
            await asyncio.sleep(_LEFT_S)
            await self._refuse(context, name, "missing", invalid_argument(("request", "is missing")))
        bounds, size = self._bounds, len(raw)
        if size > bounds.small_bytes and self.bytes_under_way + size > bounds.bytes_max:
            await self._refuse(context, name, "bytes")
        return bytes(raw)

    def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets the oldest go if there are too many; looks again once those that are still fresh no longer are."""
        bounds, count = self._bounds, len(self._readings)
        fresh_from = loop.time() - bounds.fresh_s
        crowd = []
        for place, reading in enumerate(islice(self._readings, max(0, count - bounds.incomplete_max))):
            if reading.began > fresh_from and place >= count - bounds.incomplete_hard_max:
                if self._crowd_timer is None:
                    self._crowd_timer = loop.call_at(reading.began + bounds.fresh_s, self._look_again, loop)
                break
            crowd.append(reading)
        for reading in crowd:
            self._give_up(reading, "crowded", loop)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._crowd_timer = None
        self._make_room(loop)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        late_from = loop.time() - self._bounds.wait_s
        self._timer = None
        late = []
        for reading in self._readings:
            if reading.began > late_from:
                # Reads that have ended need no timer; most have before it would go off.
                self._timer = loop.call_at(reading.began + self._bounds.wait_s, self._end_late, loop)
                break
            late.append(reading)
        for reading in late:
            self._give_up(reading, "late", loop)

    def _give_up(self, reading: _Reading, why: str, loop: asyncio.AbstractEventLoop) -> None:
        """Refuses a request that has not come. From a task of its own: the call's own is not cancelled, for a read that
        is cancelled just when the request comes would leave it in memory for good (grpc#43360)."""
        del self._readings[reading]
        refusal = loop.create_task(self._refuse_unread(reading, why), name="refuse a request on its way")
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refusals.discard)

    async def _refuse_unread(self, reading: _Reading, why: str) -> None:
        if reading.ended:
            # It has come, or the caller has left, in the meantime.
            return
        # Raised are what the call is to end with, and what grpc thinks of answering a caller who has left.
        with suppress(grpc.aio.BaseError):
            await self._refuse(reading.context, reading.name, why)

    async def _parsed(self, raw: bytes, parse: Callable[[bytes], Any] | None, context: Any, name: str) -> Any:
        if parse is None:
            return raw
        try:
            return parse(raw)
        except DecodeError:
            await self._refuse(context, name, "malformed", invalid_argument(("request", "cannot be parsed")))
