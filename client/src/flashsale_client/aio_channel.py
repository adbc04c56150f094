"""A channel for asyncio that goes over to a renewed certificate without losing a call."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from flashsale_client.certificates import Certificates, Material, log
from flashsale_client.rotation import Generation, Rotation


class AsyncRenewingChannel:
    """Has what generated stubs need of a grpc.aio.Channel. ``open_`` makes one for a certificate."""

    def __init__(self, certificates: Certificates, open_: Callable[[Material], grpc.aio.Channel]) -> None:
        self._certificates, self._open = certificates, open_
        material = certificates.current()
        self._rotation = Rotation(Generation(material, open_(material)))
        #: Of the first renewal and whatever follows from it.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel."""
        return self._method("unary_unary", method, arguments, options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """As grpc.aio.Channel."""
        return self._method("unary_stream", method, arguments, options)

    def _method(
        self, kind: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Callable[..., Any]:
        def call(request: Any, **settings: Any) -> Any:
            generation = self._take()
            try:
                inner = generation.callables.get(method)
                if inner is None:
                    inner = getattr(generation.channel, kind)(method, *arguments, **options)
                    generation.callables[method] = inner
                made = inner(request, **settings)
            except BaseException:
                self._ended(generation)
                raise
            made.add_done_callback(lambda _: self._ended(generation))
            return made

        return call

    def _take(self) -> Generation[grpc.aio.Channel]:
        """The channel for a call, which counts from now on."""
        rotation, material = self._rotation, self._certificates.current()
        if material is not rotation.newest and not self._closed:
            self._loop = asyncio.get_running_loop()
            following = Generation(material, self._open(material))
            self._drop(rotation.begin(following))
            if self._connecting is not None:
                self._connecting.cancel()
            self._connecting = self._do(self._connect(following))
        if rotation.next is not None:
            rotation.now.saw(rotation.now.channel.get_state())
            self._settle()
        rotation.now.under_way += 1
        return rotation.now

    async def _connect(self, following: Generation[grpc.aio.Channel]) -> None:
        """Connects with a new certificate, beside what is in use, and goes over to it."""
        channel = following.channel
        while following is self._rotation.next:
            state = channel.get_state(try_to_connect=True)
            if following.saw(state):
                log.warning("no connection with the new certificate yet, the old one stays in use")
            self._settle()
            if following is self._rotation.next:
                await channel.wait_for_state_change(state)

    def _settle(self) -> None:
        before = self._rotation.now
        self._drop(self._rotation.settle(time.time()))
        if before is not self._rotation.now:
            log.info("gone over to the new certificate, %d calls left on the old one", before.under_way)

    def _ended(self, generation: Generation[grpc.aio.Channel]) -> None:
        self._drop(self._rotation.ended(generation))

    def _drop(self, generations: list[Generation[grpc.aio.Channel]]) -> None:
        for generation in generations:
            self._do(generation.channel.close())

    def _do(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends every connection; calls under way are cancelled."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for generation in self._rotation.end():
            await generation.channel.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
