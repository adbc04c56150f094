"""A channel that goes over to a new certificate without losing a call.

gRPC's credentials of a channel are fixed when it is made (only those of a server can change). So there is one channel
for each certificate: calls go to the newest that is connected; an older one is closed when its last call has ended.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Self

import grpc

from mesh.certificates import Certificates, Material
from mesh.logs import get_logger

log = get_logger(__name__)

#: With less than this left, seconds, a certificate is given up for a newer one before that is connected: calls on a
#: connection that has outlived its certificate are refused, and one that nobody has used for long may have.
_ENDS_WITHIN_S = 60.0


class _Generation:
    """The channel of one certificate, and how many calls are under way on it."""

    def __init__(self, material: Material, channel: grpc.aio.Channel) -> None:
        self.material = material
        self.channel = channel
        self.under_way = 0
        self.callables: dict[str, Any] = {}
        #: Waits until it is connected, unless it was the first.
        self.connecting: asyncio.Task[None] | None = None


class RotatingChannel:
    """Has what generated stubs need of a channel. A unary call is a coroutine here, to be awaited; a stream is an
    asynchronous iterator.

    ``open_`` makes a channel for a certificate. Older channels are at most as many as there are calls that began before
    a change of certificates: no stream outlives its certificate, for the server ends it (mesh.callers).
    """

    def __init__(self, certificates: Certificates, open_: Callable[[Material], grpc.aio.Channel]) -> None:
        self._certificates, self._open = certificates, open_
        material = certificates.current()
        self._now = _Generation(material, open_(material))
        self._next: _Generation | None = None
        self._older: set[_Generation] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Awaitable[Any]]:
        """A callable for one method."""

        async def call(request: Any, **settings: Any) -> Any:
            generation = self._current()
            inner = generation.callables.get(method)
            if inner is None:
                inner = generation.channel.unary_unary(method, *arguments, **options)
                generation.callables[method] = inner
            generation.under_way += 1
            try:
                return await inner(request, **settings)
            finally:
                self._ended(generation)

        return call

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Callable[..., AsyncIterator[Any]]:
        """A callable for one method."""

        def call(request: Any, **settings: Any) -> Any:
            generation = self._current()
            stream = generation.channel.unary_stream(method, *arguments, **options)(request, **settings)
            generation.under_way += 1
            stream.add_done_callback(lambda _: self._ended(generation))
            return stream

        return call

    def _current(self) -> _Generation:
        material = self._certificates.current()
        if material is not self._now.material:
            if self._next is None or material is not self._next.material:
                self._begin(material)
            if self._now.material.expires_at - time.time() < _ENDS_WITHIN_S:
                self._go_over()
        return self._now

    def _begin(self, material: Material) -> None:
        """Connects with a new certificate, beside what is in use."""
        if self._next is not None:
            self._do(self._close(self._next))
        self._next = _Generation(material, self._open(material))
        self._next.connecting = self._do(self._connect(self._next))

    async def _connect(self, generation: _Generation) -> None:
        """Uses the new channel once it is connected: with a certificate that the other side does not trust yet, calls
        go on over the old one."""
        await generation.channel.channel_ready()
        if generation is self._next:
            self._go_over()

    def _go_over(self) -> None:
        assert self._next is not None
        before, self._now, self._next = self._now, self._next, None
        self._older.add(before)
        log.info("a channel has gone over to a new certificate", calls_left=before.under_way)
        before.under_way += 1
        self._ended(before)

    def _ended(self, generation: _Generation) -> None:
        generation.under_way -= 1
        if generation.under_way == 0 and generation in self._older:
            self._older.discard(generation)
            self._do(self._close(generation))

    async def _close(self, generation: _Generation, grace: float | None = None) -> None:
        if generation.connecting is not None:
            generation.connecting.cancel()
        await generation.channel.close(grace)

    def _do(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As grpc.aio.Channel."""
        return self._current().channel.get_state(try_to_connect)

    async def channel_ready(self) -> None:
        """As grpc.aio.Channel."""
        await self._current().channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel."""
        everything = [self._now, *self._older, *([self._next] if self._next is not None else [])]
        self._next = None
        self._older.clear()
        await asyncio.gather(*(self._close(generation, grace) for generation in everything))
        await asyncio.gather(*self._tasks, return_exceptions=True)
