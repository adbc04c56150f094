"""Taking requests in: bounded in time, number and bytes, whoever sends them.

grpc.aio reads the request of a unary call before any code of ours runs, for as long as it takes: a peer that begins
many calls and ends none had a server hold the largest message for each of them (measured: 400 calls on one connection,
400 MB), and a call without any message was never answered. So the server is given handlers that read for themselves.
On the wire nothing differs.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from google.protobuf.message import DecodeError

from mesh.errors import DomainError, invalid_argument
from mesh.interceptors import Handler, abort
from mesh.metrics import Counts


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
    incomplete_hard_max: int = 2048
    fresh_s: float = 0.5
    bytes_max: int = 64 * 1024 * 1024
    small_bytes: int = 64 * 1024
    #: Calls in which the client sends a stream (reflection), and how long each may last, seconds.
    client_streams_max: int = 32
    client_stream_s: float = 60.0


class _Reading:
    """A request on its way."""

    def __init__(self, task: "asyncio.Task[Any]", began: float) -> None:
        self.task = task
        self.began = began
        #: Why it is to end unread; None while it is welcome.
        self.refused: str | None = None


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
                self.bytes_under_way += len(raw)
                try:
                    return await answer(await self._parsed(raw, parse, context, name), context)
                finally:
                    self.bytes_under_way -= len(raw)

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
                await self._refuse(context, name, "crowded", _refusal("crowded"))
            self.client_streams += 1
            try:
                async with asyncio.timeout(self._bounds.client_stream_s):
                    async for each in converse(requests, context):
                        yield each
            except TimeoutError:
                await self._refuse(context, name, "late", _refusal("late"))
            finally:
                self.client_streams -= 1

        return grpc.stream_stream_rpc_method_handler(
            conversation, handler.request_deserializer, handler.response_serializer
        )

    async def _refuse(self, context: Any, name: str, why: str, error: DomainError) -> NoReturn:
        self._refused.add((name, why))
        await abort(context, error)

    async def _receive(self, context: Any, name: str) -> bytes:
        """The request's bytes. Aborts the call when they do not come, or are too many beside the others'."""
        raw = await self._read(context, name)
        if raw is grpc.aio.EOF:
            await self._refuse(context, name, "missing", invalid_argument(("request", "is missing")))
        bounds, size = self._bounds, len(raw)
        if size > bounds.small_bytes and self.bytes_under_way + size > bounds.bytes_max:
            await self._refuse(context, name, "bytes", _refusal("bytes"))
        return bytes(raw)

    async def _read(self, context: Any, name: str) -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        reading = _Reading(task, loop.time())
        self._readings[reading] = None
        if self._timer is None:
            self._timer = loop.call_later(self._bounds.wait_s, self._end_late, loop)
        self._make_room(loop)
        raw = None
        try:
            raw = await context.read()
        except asyncio.CancelledError:
            # The caller may have left at the same time.
            if reading.refused is None or task.uncancel() > 0:
                raise
        finally:
            del self._readings[reading]
        if raw is None:
            assert reading.refused is not None
            await self._refuse(context, name, reading.refused, _refusal(reading.refused))
        return raw

    def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets the oldest go if there are too many; looks again once those that are still fresh no longer are."""
        bounds = self._bounds
        excess = len(self._readings) - bounds.incomplete_max
        if excess <= 0:
            return
        fresh_from = loop.time() - bounds.fresh_s
        for place, reading in enumerate(self._readings):
            if place >= excess:
                return
            if reading.began > fresh_from and len(self._readings) - place <= bounds.incomplete_hard_max:
                if self._crowd_timer is None:
                    self._crowd_timer = loop.call_at(reading.began + bounds.fresh_s, self._look_again, loop)
                return
            self._give_up(reading, "crowded")

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._crowd_timer = None
        self._make_room(loop)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        late_from = loop.time() - self._bounds.wait_s
        self._timer = None
        for reading in self._readings:
            if reading.began > late_from:
                # Reads that have ended need no timer; most have before it would go off.
                self._timer = loop.call_at(reading.began + self._bounds.wait_s, self._end_late, loop)
                return
            self._give_up(reading, "late")

    @staticmethod
    def _give_up(reading: _Reading, why: str) -> None:
        if reading.refused is None:
            reading.refused = why
            reading.task.cancel()

    async def _parsed(self, raw: bytes, parse: Callable[[bytes], Any] | None, context: Any, name: str) -> Any:
        if parse is None:
            return raw
        try:
            return parse(raw)
        except DecodeError:
            await self._refuse(context, name, "malformed", invalid_argument(("request", "cannot be parsed")))
